"""The page of committed comparisons: their tables one after the other, made from the records and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .comparison import tables
from .curves_page import METHOD, curves_parts, final_losses

HEAD = """# Results of comparisons

Made by `python scripts/results_page.py` from the records in `benchmarks/compare`, which `grasp-lora compare` wrote. Do
not edit. What is compared, and under which rules: [comparison.md](comparison.md)."""


def page(records: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Return the page of several records by name, in the order of `titles`; a record without a title comes last."""
    names = [*(name for name in titles if name in records), *sorted(records.keys() - titles.keys())]
    parts = [HEAD]
    for name in names:
        parts += [f"## {titles.get(name, name)}", *_compared(name, records[name])]
    return "\n\n".join(parts) + "\n"


def fresh_page(about: str, name: str, records: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Return the page of a comparison on fresh draws, `name`: what is said `about` it, its tables, its true curves."""
    measured = [_deeper(part) for part in curves_parts(curves, partly=True)]
    count = len(records["cells"]) * len(records["seeds"])
    draws = (
        f"Nats, mean over {count} draws (cells x seeds); differences paired by draw, their intervals by a bootstrap "
        "over draws."
    )
    parts = ["## Over all draws", draws, final_losses(records, records["reference"])]
    parts += ["## Methods", *_compared(name, records), "## True curves of the prune ratio", METHOD, *measured]
    return "\n\n".join([about, *parts]) + "\n"


def _compared(name: str, records: Mapping[str, Any]) -> list[str]:
    """Return the tables and the plot of one comparison, one level down."""
    return [_deeper(tables(records)).rstrip("\n"), f"![cost and quality](figures/compare-{name}.svg)"]


def _deeper(text: str) -> str:
    return re.sub(r"^##", "###", text, flags=re.MULTILINE)
