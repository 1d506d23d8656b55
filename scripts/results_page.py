"""Render the committed records of comparisons as docs/results.md, with a cost-quality plot for each.

    python scripts/results_page.py           write the page and the plots
    python scripts/results_page.py --check   write nothing; fail when the page is not what the records say

A record is the `results.json` of a comparison's folder, copied to benchmarks/compare/NAME.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grasp_lora.report.comparison_page import page
from grasp_lora.report.cost_quality import cost_quality_plot
from grasp_lora.runs import read_json, write_text_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORDS, DOCS = ROOT / "benchmarks" / "compare", ROOT / "docs"
TITLES = {
    "real": "Real tasks",
    "real-micro-dev": "Size of micro-dev",
    "real-ablations": "Entropy bonus, anchor and commit step",
    "demo": "The demo's world: one cell, one seed, rate 1e-3 for all, none chosen; no grid and no Optuna",
}


def main() -> int:
    """Parse and write, or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    records = {path.stem: read_json(path) for path in sorted(RECORDS.glob("*.json"))}
    text, target = page(records, TITLES), DOCS / "results.md"
    if args.check:
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            sys.stderr.write(
                "docs/results.md is not what benchmarks/compare says. Run python scripts/results_page.py\n"
            )
            return 1
        return 0
    write_text_atomic(target, text)
    for name, record in records.items():
        cost_quality_plot(record, DOCS / "figures" / f"compare-{name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
