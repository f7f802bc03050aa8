"""Statistics of units, merged: counts in, their sums out."""

from collections.abc import Iterable, Mapping
from typing import Any


def merge(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds nested dictionaries of numbers key by key; lists of numbers are added element by element."""
    total: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            total[key] = _add(total[key], value) if key in total else _add_nothing(value)
    return total


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, Mapping):
        return merge([left, right])
    if isinstance(left, list):
        assert len(left) == len(right), (len(left), len(right))
        return [_add(a, b) for a, b in zip(left, right, strict=True)]
    return left + right


def _add_nothing(value: Any) -> Any:
    return merge([value]) if isinstance(value, Mapping) else value
