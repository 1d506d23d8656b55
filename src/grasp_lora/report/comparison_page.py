"""The page of committed comparisons: their tables one after the other, made from the records and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .comparison import tables

HEAD = """# Results of comparisons

Made by `python scripts/results_page.py` from the records in `benchmarks/compare`, which `grasp-lora compare` wrote. Do
not edit. What is compared, and under which rules: [comparison.md](comparison.md)."""


def page(records: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Return the page of several records by name, in the order of `titles`; a record without a title comes last."""
    names = [*(name for name in titles if name in records), *sorted(records.keys() - titles.keys())]
    parts = [HEAD]
    for name in names:
        deeper = re.sub(r"^##", "###", tables(records[name]), flags=re.MULTILINE)
        plot = f"![cost and quality](figures/compare-{name}.svg)"
        parts += [f"## {titles.get(name, name)}", deeper.rstrip("\n"), plot]
    return "\n\n".join(parts) + "\n"
