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

from grasp_lora.report.comparison_page import fresh_page, page
from grasp_lora.report.cost_quality import cost_quality_plot
from grasp_lora.report.curves_page import curves_page
from grasp_lora.runs import read_json, write_text_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORDS, DOCS = ROOT / "benchmarks" / "compare", ROOT / "docs"
CURVES = "real-curves"
FRESH = "fresh"  # and its curves
TITLES = {
    "real": "Real tasks",
    "real-recommended": "The recommended recipe as it ships, on 2 CPU cores with the adapters of the comparison",
    "real-policies": "What the controller may choose",
    "real-micro-dev": "Size of micro-dev",
    "real-ablations": "Entropy bonus, anchor and commit step",
    "demo": "The demo's world: one cell, one seed, rate 1e-3 for all, none chosen; no grid and no Optuna",
}


def pages_of(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the text of every page by its file's name."""
    apart = {CURVES, FRESH, f"{FRESH}-curves"}
    pages = {"results.md": page({name: each for name, each in records.items() if name not in apart}, TITLES)}
    if CURVES in records:
        pages["results-curves.md"] = curves_page(records[CURVES])
    if FRESH in records:
        pages["results-fresh.md"] = fresh_page(FRESH, records[FRESH], records[f"{FRESH}-curves"])
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
    pages = pages_of(records)
    if args.check:
        old = [name for name, text in pages.items() if not is_as(DOCS / name, text)]
        for name in old:
            sys.stderr.write(f"docs/{name} is not what benchmarks/compare says. Run python scripts/results_page.py\n")
        return int(bool(old))
    for name, text in pages.items():
        write_text_atomic(DOCS / name, text)
    for name, record in records.items():
        if name not in (CURVES, f"{FRESH}-curves"):
            cost_quality_plot(record, DOCS / "figures" / f"compare-{name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
