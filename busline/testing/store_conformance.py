"""All checks of stores, and how to run one.

A check is `async def check_<sentence>(h: StoreHarness)`; its docstring is the rule. It raises `AssertionError` or
`TimeoutError` where the rule is broken, and returns None, or "processes" where no other process can reach the store.

Running all of them over a store of your own:

    @pytest.mark.parametrize("check", all_checks(), ids=name)
    async def test_my_store(check): await check(MyHarness())
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from busline.testing import checks_store_claims, checks_store_jobs, checks_store_orphans
from busline.testing.conformance import name
from busline.testing.store_harness import StoreHarness

__all__ = ["Check", "all_checks", "name"]

Check = Callable[[StoreHarness], Awaitable[str | None]]

_MODULES = (checks_store_claims, checks_store_orphans, checks_store_jobs)


def all_checks() -> list[Check]:
    """Every check of stores, in the order in which the contract is read."""
    return [found for module in _MODULES for attribute, found in vars(module).items() if attribute.startswith("check_")]
