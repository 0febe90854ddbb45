"""The evaluation as one HTML page: no script, nothing from the network, every picture inside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from diffaccel.evaluation.contents import (
    GAIN_NOTE,
    Cell,
    Duel,
    Headline,
    Result,
    cost_columns,
    heading,
    legend,
    metric_columns,
    remark,
    timing_note,
)
from diffaccel.evaluation.gallery import Strip, Tile, strips
from diffaccel.evaluation.sentences import duels, headlines, subtitle, title, verdict
from diffaccel.evaluation.style import CSS


def as_html(result: Result, pictures: Mapping[str, Sequence[Image.Image]], plot_png: bytes | None) -> str:
    """The page.

    Args:
        result: of an evaluation.
        pictures: by candidate (and by the reference's name, where folders were compared), in the order of the columns;
            one for each of the result's prompts to show. May be empty.
        plot_png: the trade-off, see `diffaccel.evaluation.plot.draw`; None leaves it out.

    Raises:
        ValueError: a candidate has fewer pictures than there are prompts to show.
    """
    name = escape(title(result))
    body = "\n".join(
        [
            f"<header><h1>{name}</h1><p class='pale'>{escape(subtitle(result))}</p></header>",
            _warnings(result["warnings"]),
            _headlines(headlines(result)),
            _plot(plot_png),
            _candidates(result),
            _duels(duels(result)),
            _gallery(result, pictures),
            _details(result),
        ]
    )
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n"
        f"<title>{name}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f"<section class='warnings' role='note'><strong>Warnings</strong><ul>{items}</ul></section>"


def _headlines(lines: Sequence[Headline]) -> str:
    items = []
    for line in lines:
        mark = ""
        if line.duel:
            words = f"{line.duel.metric['label']}: {verdict(line.duel)}"
            mark = f"<span class='verdict {line.duel.ahead}'>{escape(words)}</span>"
        items.append(f"<li><b>{escape(line.name)}</b>{escape(line.sentence)}<br>{mark}</li>")
    return f"<ul class='headlines'>{''.join(items)}</ul>" if items else ""


def _plot(png: bytes | None) -> str:
    if png is None:
        return ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    about = "Quality against measured speed-up; the numbers are in the table of candidates."
    note = "Bars: 95% interval of the quality, range of the speed-up over the rounds. Better is up and to the right."
    image = f"<div class='wide plot'><img src='{source}' alt='{about}'></div>"
    return f"<h2>Trade-off</h2><figure>{image}<figcaption>{note}</figcaption></figure>"


def _candidates(result: Result) -> str:
    """A row a candidate."""
    columns = [*cost_columns(result), *metric_columns(result)]
    head = "".join(f"<th scope='col'>{escape(column.title)}</th>" for column in columns)
    rows = []
    for i, candidate in enumerate(result["candidates"]):
        cells = "".join(f"<td>{_cell(column.cells[i])}</td>" for column in columns)
        name = _cell(Cell(candidate["name"], remark(candidate)))
        rows.append(f"<tr class='{escape(candidate['kind'])}'><th scope='row'>{name}</th>{cells}</tr>")
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    notes = [f"<li><b>{escape(name)}</b> {escape(about)}</li>" for name, about in legend(result)]
    notes += [f"<li>{escape(note)}</li>" for note in ("Below a metric: its 95% interval.", timing_note(result)) if note]
    return f"<h2>Candidates</h2><div class='wide numbers'>{table}</div><ul class='legend'>{''.join(notes)}</ul>"


def _duels(found: Sequence[Duel]) -> str:
    """A row a method and plain run, a column a metric, in each the difference and who is ahead."""
    if not found:
        return ""
    metrics = {duel.metric["key"]: duel.metric for duel in found}
    head = "".join(f"<th scope='col' class='words'>{escape(heading(metric))}</th>" for metric in metrics.values())
    rows: dict[tuple[str, str, str], dict[str, Duel]] = {}
    for duel in found:
        rows.setdefault((duel.of, duel.over, duel.equal), {})[duel.metric["key"]] = duel
    lines, last = [], ""
    for (of, over, equal), row in rows.items():
        cells = "".join(f"<td class='words'>{_winner(row[key]) if key in row else ''}</td>" for key in metrics)
        name = _cell(Cell(of, f"against {over}, {equal}"))
        lines.append(f"<tr class='{'first' if of != last else 'next'}'><th scope='row'>{name}</th>{cells}</tr>")
        last = of
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<h2>Against fewer steps</h2><div class='wide numbers'>{table}</div><p class='legend'>{GAIN_NOTE}</p>"


def _winner(duel: Duel) -> str:
    words = {"method": "method ahead", "fewer": "fewer steps ahead"}.get(duel.ahead, duel.winner)
    return f"<span class='verdict {duel.ahead}'>{escape(words)}</span><br>{_cell(duel.difference)}"


def _gallery(result: Result, pictures: Mapping[str, Sequence[Image.Image]]) -> str:
    """A row a prompt, a column a candidate."""
    prompts = result["pictures"]["prompts"]
    if not pictures or not prompts:
        return ""
    columns: list[Strip] = strips(result, pictures)
    head = "".join(f"<th scope='col'>{_cell(Cell(strip.name, strip.note))}</th>" for strip in columns)
    rows = []
    for i, prompt in enumerate(prompts):
        cells = "".join(f"<td>{_image(strip.tiles[i])}</td>" for strip in columns)
        caption = f"<th scope='rowgroup' class='prompt' colspan='{len(columns)}'><span>{escape(prompt)}</span></th>"
        rows.append(f"<tbody><tr>{caption}</tr><tr>{cells}</tr></tbody>")
    table = f"<table><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    return f"<h2>Pictures</h2><div class='wide grid'>{table}</div>"


def _image(tile: Tile | None) -> str:
    if tile is None:
        return "<small>sizes differ</small>"
    size = f"width='{tile.width}' height='{tile.height}'"
    kind = " class='pixels'" if tile.enlarged else ""
    return f"<img{kind} src='{tile.source}' {size} alt='{escape(tile.words)}'>"


def _details(result: Result) -> str:
    """Everything that is needed to repeat the evaluation."""
    methods = {c["name"]: c["method"] for c in result["candidates"] if c.get("method")}
    names = ("request", "reference", "extractor", "clip_model", "lpips", "environment")
    parts = [_listing("methods", methods), *(_listing(name.replace("_", " "), result.get(name)) for name in names)]
    command = f"<p><code>{escape(result['command'])}</code></p>"
    return f"<details><summary>How this was made</summary>{command}{''.join(parts)}</details>"


def _listing(name: str, content: Mapping[str, Any] | None) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in _flat(content))
    return f"<h3>{escape(name)}</h3><dl>{items}</dl>" if items else ""


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings with dotted names, empty ones left out."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif content is not None and content != "" and content != []:
        yield prefix, ", ".join(map(str, content)) if isinstance(content, list | tuple) else str(content)


def _cell(cell: Cell) -> str:
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"{escape(cell.text)}{note}"
