"""Reversible replacement of one attribute of one instance. Classes are never touched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

_ABSENT = object()


class Patch:
    """Replaces `owner.attr` on the instance until `remove()` puts back exactly what was there.

    Args:
        owner: the instance whose attribute is replaced.
        attr: name of a method.
        wrap: gets the real callable, returns the one to install. The latter must fall back to the real one when idle: a
            library that wrapped it in turn may keep calling it after `remove()`.
    """

    def __init__(self, owner: object, attr: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner, self.attr = owner, attr
        self.before = vars(owner).get(attr, _ABSENT)
        real = getattr(owner, attr)
        self.replacement = _Replacement(self, real, wrap(real))
        setattr(owner, attr, self.replacement)

    def remove(self) -> None:
        """Put the attribute back; a wrapper that somebody else installed on top of ours is left alone."""
        if vars(self.owner).get(self.attr) is not self.replacement:
            return
        if self.before is _ABSENT:
            delattr(self.owner, self.attr)
        else:
            setattr(self.owner, self.attr, self.before)


class _Replacement:
    """The installed callable, with the real one's signature: pipelines read that of `scheduler.step`."""

    def __init__(self, patch: Patch, real: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, real, updated=())
        self.patch, self.call = patch, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the owner gets the plain method, bound to the copy; it must not drive the original."""
        return _plain(memo.get(id(self.patch.owner), self.patch.owner), self.patch.attr)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its owner, it comes back as the plain method, too."""
        return _plain, (self.patch.owner, self.patch.attr)


def _plain(owner: object, attr: str) -> Any:
    return MethodType(getattr(type(owner), attr), owner)
