"""Texts shown on standard error while they are decoded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

PROMPT = 60
"""Characters of a prompt's last line that are shown before its text."""


@contextmanager
def shown(prompts: Sequence[str]) -> Iterator[Callable[[Sequence[str]], None]]:
    """What shows the texts as they are now, one of each prompt.

    A terminal's lines are rewritten, and empty again at the end. Elsewhere, a text that has changed is a new line.
    """
    console = Console(file=sys.stderr, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda texts: live.update(_page(prompts, texts), refresh=True)
        return
    before = [""] * len(prompts)

    def show(texts: Sequence[str]) -> None:
        changed = [text for text, last in zip(texts, before, strict=True) if text != last]
        sys.stderr.writelines(f"{_line(text)}\n" for text in changed)
        sys.stderr.flush()
        before[:] = texts

    yield show


def _page(prompts: Sequence[str], texts: Sequence[str]) -> Group:
    """Each text after the end of its prompt, which is dim."""
    ends = (_line(prompt)[-PROMPT:] for prompt in prompts)
    return Group(*(Text.assemble((end, "dim"), text) for end, text in zip(ends, texts, strict=True)))


def _line(text: str) -> str:
    return text.replace("\n", "⏎")
