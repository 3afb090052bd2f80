"""What depends on a bundle alone, worked out once for all suspects that are checked with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from onnxaudit.bundle import QueryBundle

T = TypeVar("T")
_KNOWN: WeakKeyDictionary[QueryBundle, dict[Callable[[QueryBundle], Any], Any]] = WeakKeyDictionary()


def once(function: Callable[[QueryBundle], T], bundle: QueryBundle) -> T:
    """``function(bundle)``, remembered as long as the bundle is there; the result must not be changed by anyone."""
    known = _KNOWN.setdefault(bundle, {})
    if function not in known:
        known[function] = function(bundle)
    result: T = known[function]
    return result
