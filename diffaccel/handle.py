"""What an acceleration hands out: taken off by itself or at the end of a `with` block, and never copied."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self


class Handle:
    """The base of handles: what they have in common beside `remove`."""

    def remove(self) -> None:
        """Put everything back as it was. Calling it again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a pipeline is not accelerated: its `acceleration` is None."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Nor is a pickled one."""
        return type(None), ()
