"""docs/pipelines.md, made from the census and the toy networks: `python -m tests.zoo_table` writes it anew."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import diffusers

from diffaccel.sites import LEVELS, sites
from tests.zoo import specimen
from tests.zoo_census import components, denoisers, needing_more, pipelines
from tests.zoo_findings import PREPARING, TIMELESS, UNBUILDABLE, UNFIT, UNUSED, WITHOUT
from tests.zoo_pipelines import makes, reasons_against, run_whole

DOCUMENT = Path(__file__).parent.parent / "docs" / "pipelines.md"

_HEAD = """\
# Pipelines and denoisers of diffusers {version}

<!-- Made by `python -m tests.zoo_table`; tests/test_sweep_pipelines.py compares. Do not edit by hand. -->

diffusers exports {pipelines} pipeline classes that need no further package. {accelerated} of them have a denoiser that
diffaccel finds and attaches to, {whole} of these are also run whole by tests. They share {networks} denoiser classes,
of which {built} are tested at toy size at every level that fits them, in {combinations} combinations. {more} further
pipelines need {packages} and are left out.

What is tested of every denoiser class and level, with a network of two blocks of each sort, random weights and float32:

- sites are found, and all that the network uses are forecast in skipped steps;
- in a skipped step the real code of attention, feed-forward and residual layers is not entered;
- all outputs, sound beside pictures among them, are finite forecasts of the right shape and type, and plain reuse with
  the same inputs returns the computed output bit by bit;
- a plan that computes every step is bit-identical to the network alone;
- taken off, the network is as it was: attributes, hooks, parameters and outputs;
- a level that does not fit is refused with an error.

This says that skipping works and does no harm to the mechanics. It says nothing of picture quality, which depends on
trained weights: `diffaccel evaluate` measures that.
"""

_PIPELINES = """
## Pipelines

"makes" is what the pipeline returns, where its output's fields tell. "toy network run" means that the denoisers were
tested as above, and that `accelerate_pipeline` finds them in an object of the class, attaches and comes off again.
"""

_NETWORKS = """
## Denoisers

Number of sites by level in the toy network; real ones have more blocks. Both "-" and "refused" mean that the level does
not fit and that asking for it is an error; "refused" is a network that goes down and up again, as the level wants, and
ends in another way. The last column names what also runs in skipped steps, beside projections and norms: parts that
prepare text, time or latents for the blocks.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [tuple(head), tuple("---" for _ in head), *(tuple(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def pipeline_row(name: str) -> tuple[str, ...]:
    """Pipeline, what it makes, its denoisers, and how it is tested."""
    found = components(pipelines()[name])
    parts = [f"{part}: {' or '.join(kind.__name__ for kind in kinds)}" for part, kinds in found.items()]
    if not parts:
        tested = f"no denoiser: {WITHOUT[name]}"
    elif reasons := reasons_against(name):
        tested = f"not built: {reasons[0]}"
    else:
        tested = "whole pipeline run" if name in run_whole() else "toy network run"
    return name, makes(name), "<br>".join(parts), tested


def count(name: str, level: str) -> str:
    """Number of sites of a toy network at a level."""
    if (name, level) in UNFIT:
        return "refused"
    try:
        return str(len(sites(specimen(name).network, level)) - UNUSED.get((name, level), 0))
    except ValueError:
        return "-"


def network_row(name: str) -> tuple[str, ...]:
    """Denoiser, number of sites by level, and what runs in skipped steps."""
    if name in UNBUILDABLE:
        return name, *("" for _ in LEVELS), f"not built: {UNBUILDABLE[name]}"
    remarks = [f"`{part}`" for part in PREPARING.get(name, ())]
    remarks += ["takes no timestep: accelerated in pipelines, not in loops of your own"] if name in TIMELESS else []
    return name, *(count(name, level) for level in LEVELS), ", ".join(remarks)


def document() -> str:
    """The whole of docs/pipelines.md."""
    networks, rows = [network_row(name) for name in denoisers()], [pipeline_row(name) for name in pipelines()]
    built = [row for row in networks if row[0] not in UNBUILDABLE]
    accelerated = [row for row in rows if row[3] in ("toy network run", "whole pipeline run")]
    packages = sorted(set(", ".join(needing_more().values()).split(", ")))
    head = _HEAD.format(
        version=".".join(diffusers.__version__.split(".")[:2]),
        pipelines=len(rows),
        accelerated=len(accelerated),
        whole=len([row for row in rows if row[3] == "whole pipeline run"]),
        networks=len(networks),
        built=len(built),
        combinations=sum(cell.isdigit() for row in built for cell in row[1:-1]),
        more=len(needing_more()),
        packages=f"{', '.join(packages[:-1])} or {packages[-1]}",
    )
    head = "\n\n".join(
        textwrap.fill(part, 120) if part.startswith("diffusers exports") else part for part in head.split("\n\n")
    )
    return (
        head
        + _PIPELINES
        + "\n"
        + table(("pipeline", "makes", "denoisers", "tested"), rows)
        + _NETWORKS
        + "\n"
        + table(("denoiser", *LEVELS, "also runs in skipped steps"), networks)
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf8")
