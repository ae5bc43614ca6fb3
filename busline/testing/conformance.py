"""All driver checks, and how to run one.

A check is `async def check_<sentence>(h: Harness)`; its docstring is the rule. It raises `AssertionError` where the
rule is broken. It returns None where the behaviour was seen, and the name of the `Limits` or
`QueueSpec` field (or "inspectable") where the transport does not offer it; then the check has seen that it says so.

Running all of them over a transport of your own:

    @pytest.mark.parametrize("check", all_checks(), ids=name)
    async def test_my_transport(check): await run(check, MyHarness())
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from busline.testing import (
    checks_delay,
    checks_delivery,
    checks_expiry,
    checks_failure,
    checks_inbox,
    checks_inspect,
    checks_leases,
    checks_lifecycle,
    checks_options,
    checks_topics,
)
from busline.testing.harness import Harness

Check = Callable[[Harness], Awaitable[str | None]]

_MODULES = (
    checks_lifecycle,
    checks_delivery,
    checks_leases,
    checks_delay,
    checks_expiry,
    checks_topics,
    checks_options,
    checks_inbox,
    checks_failure,
    checks_inspect,
)


def all_checks() -> list[Check]:
    """Every driver check, in the order in which the contract is read."""
    return [found for module in _MODULES for attribute, found in vars(module).items() if attribute.startswith("check_")]


def name(check: Check) -> str:
    """`leases.an_expired_lease_delivers_again`, say."""
    module = check.__module__.rpartition(".checks_")[2]
    return f"{module}.{check.__qualname__.removeprefix('check_')}"


async def run(check: Check, harness: Harness) -> str:
    """Run it; "ran", or "refused(<limit>)" where the transport declines what the check is about."""
    refused = await check(harness)
    return "ran" if refused is None else f"refused({refused})"
