"""What kind each value in a JSON file of ours is, so that a file is refused where it is read and not where it is used.

A kind is a predicate; `[kind]`, a list of such values; or `{name: kind}`, an object, of which other names may be
anything, or what `...` says. Null, and a name that is not there, is of every kind but `(kind,)`, which must be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

Kind = Any
GREATEST = 1e150  # of numbers: beyond it sums and spans are infinite


def number(x: Any) -> TypeGuard[float]:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= GREATEST


def whole(x: Any) -> bool:
    return isinstance(x, int) and number(x)


def flag(x: Any) -> bool:
    return isinstance(x, bool)


def string(x: Any) -> bool:
    return isinstance(x, str)


def plain(x: Any) -> bool:
    """Whatever can be shown: all but a number that is too large."""
    return number(x) or isinstance(x, bool) or not isinstance(x, int | float)


def check(value: Any, kind: Kind) -> None:
    """Raises ValueError, which names the first value in `value` that is not of its kind."""
    for name, found in _misfits(value, kind, ""):
        raise ValueError(f"{name or 'it'} cannot be {'left out' if found is None else _brief(found)}")


def _misfits(value: Any, kind: Kind, name: str) -> Iterator[tuple[str, Any]]:
    if value is None:
        if isinstance(kind, tuple):
            yield name, None
        return
    kind = kind[0] if isinstance(kind, tuple) else kind
    if isinstance(kind, list) and isinstance(value, list):
        for i, one in enumerate(value):
            yield from _misfits(one, kind[0], f"{name}[{i}]")
    elif isinstance(kind, dict) and isinstance(value, dict):
        others = kind.get(..., _anything)
        for key in (key for key in {**kind, **value} if key is not ...):
            yield from _misfits(value.get(key), kind.get(key, others), f"{name}.{key}" if name else key)
    elif isinstance(kind, list | dict) or not kind(value):
        yield name, value


def _anything(x: Any) -> bool:
    return True


def _brief(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:37]}..."
