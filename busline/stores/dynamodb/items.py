"""Values as DynamoDB writes them, and expressions whose names are never a reserved word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"#(\w+)")
_VALUE = re.compile(r":(\w+)")

Item = dict[str, Any]


def encode(value: object) -> dict[str, Any]:
    """One value."""
    match value:
        case bool():
            return {"BOOL": value}
        case int() | float():
            return {"N": repr(value)}
        case bytes():
            return {"B": value}
        case frozenset():
            return {"SS": sorted(value)}
    return {"S": str(value)}


def decode(item: Mapping[str, Mapping[str, Any]] | None) -> Item | None:
    """One item; None if there is none."""
    return {name: _decoded(value) for name, value in item.items()} if item else None


def _decoded(value: Mapping[str, Any]) -> object:
    ((kind, content),) = value.items()
    if kind == "N":
        return float(content) if any(c in content for c in ".eE") else int(content)
    return content


def expression(values: Mapping[str, object], **texts: str) -> dict[str, Any]:
    """The arguments for these expressions; `values` may have more than they use, DynamoDB's may not."""
    all_of_them = " ".join(texts.values())
    used = {name: encode(values[name]) for name in set(_VALUE.findall(all_of_them))}
    arguments: dict[str, Any] = dict(texts)
    arguments["ExpressionAttributeNames"] = {f"#{name}": name for name in set(_NAME.findall(all_of_them))}
    if used:
        arguments["ExpressionAttributeValues"] = {f":{name}": value for name, value in used.items()}
    return arguments
