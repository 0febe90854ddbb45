"""The evaluation as plain text: what it cost, what it reached, and who is ahead at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from diffaccel.commands.text import render, table
from diffaccel.evaluation.contents import GAIN_NOTE, Column, Result, cost_columns, legend, metric_columns, timing_note
from diffaccel.evaluation.sentences import duels, headlines, subtitle, title

WIDEST = 120  # characters; metrics that do not fit go on in a further table


def as_text(result: Result) -> str:
    """Tables, sentences and warnings of an evaluation's result, as the command line prints them."""
    parts = ["\n".join(line for line in (title(result), subtitle(result)) if line)]
    if cost := cost_columns(result):
        parts.append(f"{_table(result, cost)}\n{timing_note(result)}".rstrip())
    parts += [_table(result, columns) for columns in _pages(result, metric_columns(result))]
    if lines := [f"{name}: {about}" for name, about in legend(result)]:
        parts.append("\n".join([*lines, "In brackets: 95% interval."]))
    if result["gains"]:
        parts.append(_gains(result))
    if said := [f"{line.name}: {line.sentence}" for line in headlines(result)]:
        parts.append("\n".join(said))
    if result["warnings"]:
        parts.append("\n".join(f"Warning: {warning}" for warning in result["warnings"]))
    return "\n\n".join(parts)


def _table(result: Result, columns: Sequence[Column]) -> str:
    """A row a candidate."""
    content = table("", *(column.title for column in columns))
    for i, candidate in enumerate(result["candidates"]):
        content.add_row(candidate["name"], *(str(column.cells[i]) for column in columns))
    return render(content)


def _pages(result: Result, columns: Sequence[Column]) -> list[list[Column]]:
    """The columns on as many tables as keep each within `WIDEST` characters."""
    names = max((len(candidate["name"]) for candidate in result["candidates"]), default=0)
    pages: list[list[Column]] = []
    room = 0
    for column in columns:
        width = 2 + max(len(text) for text in (column.title, *map(str, column.cells)))
        if not pages or width > room:
            pages.append([])
            room = WIDEST - names
        pages[-1].append(column)
        room -= width
    return pages


def _gains(result: Result) -> str:
    """A row for each method, plain run and metric."""
    content = table("method", "against", "metric", "difference", "ahead")
    content.columns[1].justify = content.columns[2].justify = content.columns[4].justify = "left"
    for duel in duels(result):
        what = f"{duel.over}, {duel.equal}"
        content.add_row(duel.of, what, duel.metric["label"], str(duel.difference), duel.winner)
    return f"{render(content)}\n{GAIN_NOTE}"
