"""What an evaluation writes: text, `result.json`, `report.html` and `trade_off.png`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHOWN = 6
"""Prompts whose pictures are in the report."""


def as_text(data: dict[str, Any]) -> str:
    """The result for people."""
    from diffaccel.evaluation import report_text

    return report_text.as_text(data)


def write_report(data: dict[str, Any], pictures: dict[str, Any], folder: Path | None, html: str | None) -> list[Path]:
    """Write result.json, report.html and trade_off.png to a folder, and the report to `html` as well."""
    from diffaccel.evaluation import plot, report_html

    try:
        picture = plot.draw(data) if plot.drawable(data) else None
    except ImportError as error:
        data["warnings"].append(f"no plot: {error}")
        picture = None
    page = report_html.as_html(data, pictures, picture)
    written = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "result.json", folder / "report.html"]
        written[0].write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        written[1].write_text(page)
        if picture is not None:
            written.append(folder / "trade_off.png")
            written[2].write_bytes(picture)
    if html is not None:
        Path(html).write_text(page)
        written.append(Path(html))
    return written
