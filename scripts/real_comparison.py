"""The comparison on real tasks, its ablations, and the size of micro-dev: one command each; repeated, it goes on.

    python scripts/real_comparison.py main --backbone DIR --data DIR --out DIR [--jobs 8]
    python scripts/real_comparison.py ablations --backbone DIR --data DIR --out DIR
    python scripts/real_comparison.py micro-dev --backbone DIR --data DIR --out DIR

Settings: benchmarks/compare/real.yaml. A run that was stopped, or that a job's time limit ended, is gone on with by the
same command. The records lie in OUT/<part>/results.json; copied to benchmarks/compare/real.json, real-ablations.json or
real-micro-dev.json they enter docs/results.md (scripts/results_page.py). `micro-dev` cuts 4, 8, 16 and 32 examples
from micro_dev_32.jsonl beside micro_dev.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from grasp_lora.cli.options import command_line, out
from grasp_lora.config import Config, build_config, parse_yaml
from grasp_lora.errors import GraspError
from grasp_lora.pipeline.comparison import compare, compare_config
from grasp_lora.runs import make_progress, write_text_atomic
from grasp_lora.runs.folder import MARKER

SETTINGS = Path(__file__).resolve().parent.parent / "benchmarks" / "compare"
SIZES = (4, 8, 16, 32)


def settings(args: argparse.Namespace) -> Config:
    """Return the settings of a part."""
    tree = parse_yaml((SETTINGS / "real.yaml").read_text(encoding="utf-8"), "real.yaml")
    section = tree["compare"]
    if args.part == "ablations":
        section |= parse_yaml((SETTINGS / "ablations.yaml").read_text(encoding="utf-8"), "ablations.yaml")["compare"]
    if args.part == "micro-dev":
        section |= {"methods": ["grasp_default"], "generate": [], "cells": sized_cells(args, section["cells"])}
    tree["model"]["name_or_path"] = str(args.backbone)
    tree["run"] = {"dir": str(args.out / args.part)}
    section |= {"root": str(args.data.resolve()), "seeds": args.seeds or section["seeds"]}
    config = build_config(tree)
    return compare_config(config, args.methods.split(",") if args.methods else None, args.jobs)


def sized_cells(args: argparse.Namespace, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every cell with each size of micro-dev; the slices are the first lines of micro_dev_32.jsonl."""
    sized = []
    for cell in cells:
        whole = (args.data / cell["target"]["micro_dev"]).with_name("micro_dev_32.jsonl")
        lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
        for size in SIZES:
            path = args.out.resolve() / "micro-dev-files" / f"{cell['name']}-{size}.jsonl"
            write_text_atomic(path, "".join(lines[:size]))
            target = cell["target"] | {"micro_dev": str(path)}
            name = f"{cell['name']}-m{size}"
            sized.append(cell | {"name": name, "target": target, "set": {"data.micro_dev_size": size}})
    return sized


def main() -> int:
    """Parse, run or go on, print the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=["main", "ablations", "micro-dev"])
    for name in ("backbone", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--jobs", type=int, help="runs side by side; default as in real.yaml")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--methods", help="with commas; default all")
    args = parser.parse_args()
    try:
        config = settings(args)
        resume = (Path(str(config.run.dir)) / MARKER).is_file()
        done = compare(config, make_progress(), resume=resume, command=command_line())
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    out(done.tables)
    return done.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
