"""Python source text: the standard library of the interpreter that runs this."""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path

from diffaccel.pipelines.bundled.language.problems import Split


def files(split: Split) -> list[Path]:
    """Modules of the standard library, in order of their names; one in sixteen is held out, by its name.

    Its tests are left out: they are most of it, and are full of tables.
    """
    root = Path(sysconfig.get_path("stdlib"))
    apart = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    found = [path for path in sorted(root.rglob("*.py")) if not apart.intersection(path.relative_to(root).parts)]
    return [path for path in found if _held_out(path.relative_to(root)) == (split == "held-out")]


def text(split: Split, limit: int | None = None) -> str:
    """All of them, joined; at most `limit` characters."""
    joined = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files(split))
    return joined[:limit]


def _held_out(path: Path) -> bool:
    return zlib.crc32(path.as_posix().encode()) % 16 == 0
