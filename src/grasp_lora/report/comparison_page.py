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

FRESH = """# The comparison on fresh draws

Made by `python scripts/results_page.py` from `benchmarks/compare/fresh.json` and `fresh-curves.json`, which
`scripts/real_comparison.py` wrote. Do not edit. What is compared, and under which rules:
[comparison.md](comparison.md).

The recipe that ships and the controller's static search were chosen on the cells, examples and seeds of
[results.md](results.md). Here training, dev and micro-dev examples are new, drawn by `scripts/fresh_draws.py` from half
of the documents of the old test files, for each seed by itself, and so are seeds, source and target adapters. Tasks,
languages, backbone and settings are the same. The test examples are the other half of the old test files: no method saw
them, but results on them were known when the recipe was chosen. Seeds draw from one pool, so that draws of a cell share
examples, and the twelve are not quite independent.

Everything ran on two H200s, but for five rows on titles (target, sequential, average, GRASP default and recommended),
which ran on 2 CPU cores in bfloat16, on the adapters trained there, without generation. The grid and the curve were not
run on titles."""


def page(records: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Return the page of several records by name, in the order of `titles`; a record without a title comes last."""
    names = [*(name for name in titles if name in records), *sorted(records.keys() - titles.keys())]
    parts = [HEAD]
    for name in names:
        parts += [f"## {titles.get(name, name)}", *_compared(name, records[name])]
    return "\n\n".join(parts) + "\n"


def fresh_page(name: str, records: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Return the page of a comparison on fresh draws, which is called `name`: its tables, then its true curves."""
    measured = [_deeper(part) for part in curves_parts(curves, partly=True)]
    count = len(records["cells"]) * len(records["seeds"])
    draws = (
        f"Nats, mean over {count} draws (cells x seeds); differences paired by draw, their intervals by a bootstrap "
        "over draws."
    )
    parts = ["## Over all draws", draws, final_losses(records, records["reference"])]
    parts += ["## Methods", *_compared(name, records), "## True curves of the prune ratio", METHOD, *measured]
    return "\n\n".join([FRESH, *parts]) + "\n"


def _compared(name: str, records: Mapping[str, Any]) -> list[str]:
    """Return the tables and the plot of one comparison, one level down."""
    return [_deeper(tables(records)).rstrip("\n"), f"![cost and quality](figures/compare-{name}.svg)"]


def _deeper(text: str) -> str:
    return re.sub(r"^##", "###", text, flags=re.MULTILINE)
