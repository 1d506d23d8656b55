"""Render the committed records of comparisons: docs/results.md, with a cost-quality plot for each, and the true curves.

    python scripts/results_page.py           write the pages and the plots
    python scripts/results_page.py --check   write nothing; fail when a page is not what the records say

A record is the `results.json` of a comparison's folder, copied to benchmarks/compare/NAME.json. `real-curves.json`
becomes docs/results-curves.md, `fresh.json` and `fresh-curves.json` docs/results-fresh.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from grasp_lora.errors import GraspError, RunError
from grasp_lora.report.comparison_page import fresh_page, page
from grasp_lora.report.cost_quality import cost_quality_plot
from grasp_lora.report.curves_page import curves_page
from grasp_lora.runs import read_json, write_text_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORDS, DOCS = ROOT / "benchmarks" / "compare", ROOT / "docs"
CURVES = "real-curves"
FRESH, FRESH_CURVES = "fresh", "fresh-curves"
TITLES = {
    "real": "Real tasks",
    "real-recommended": "The recommended recipe as it ships, on 2 CPU cores with the adapters of the comparison",
    "real-policies": "What the controller may choose",
    "real-micro-dev": "Size of micro-dev",
    "real-ablations": "Entropy bonus, anchor and commit step",
    "demo": "The demo's world: one cell, one seed, rate 1e-3 for all, none chosen; no grid and no Optuna",
}
ABOUT_FRESH = """# The comparison on fresh draws

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


def pages_of(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the text of every page by its file's name; raises `RunError` for one of two records of a page."""
    apart = {CURVES, FRESH, FRESH_CURVES}
    pages = {"results.md": page({name: each for name, each in records.items() if name not in apart}, TITLES)}
    if CURVES in records:
        pages["results-curves.md"] = curves_page(records[CURVES])
    if (FRESH in records) != (FRESH_CURVES in records):
        there, missing = (FRESH, FRESH_CURVES) if FRESH in records else (FRESH_CURVES, FRESH)
        raise RunError(
            f"{there}.json is there without {missing}.json, and docs/results-fresh.md is made from both. Write the "
            "other with scripts/real_comparison.py --tables-only --records, or take this one away."
        )
    if FRESH in records:
        pages["results-fresh.md"] = fresh_page(ABOUT_FRESH, FRESH, records[FRESH], records[FRESH_CURVES])
    return pages


def is_as(path: Path, text: str) -> bool:
    """Return whether a page is there and says this."""
    return path.exists() and path.read_text(encoding="utf-8") == text


def main() -> int:
    """Parse and write, or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    records = {path.stem: read_json(path) for path in sorted(RECORDS.glob("*.json"))}
    try:
        pages = pages_of(records)
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if args.check:
        old = [name for name, text in pages.items() if not is_as(DOCS / name, text)]
        for name in old:
            sys.stderr.write(f"docs/{name} is not what benchmarks/compare says. Run python scripts/results_page.py\n")
        return int(bool(old))
    for name, text in pages.items():
        write_text_atomic(DOCS / name, text)
    for name, record in records.items():
        if name not in (CURVES, FRESH_CURVES):
            cost_quality_plot(record, DOCS / "figures" / f"compare-{name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
