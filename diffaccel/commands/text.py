"""Tables as plain text, the same on a terminal and in a file."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table


def table(*columns: str) -> Table:
    """An empty table; all columns but the first are aligned to the right, as numbers are."""
    result = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in result.columns[1:]:
        column.justify = "right"
    return result


def render(content: Table) -> str:
    """The table, as wide as it needs to be."""
    page = io.StringIO()
    Console(file=page, width=200, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())
