"""What the controller finds when it probes the real merges as they are, held against the committed true curves.

    python scripts/real_probes.py --backbone DIR --data DIR --comparison OUT --out FILE [--set KEY=VALUE]
    python scripts/real_probes.py --out FILE        regrets once more, of what the record holds

OUT is the folder that scripts/real_comparison.py wrote: its adapters are merged, nothing is trained. Regrets are read
off benchmarks/compare/real-curves.json. FILE is a JSON record with every evaluation, so that other settings can be
tried on it without a model.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers

from grasp_lora.adapters.peft_load import AdapterFactors
from grasp_lora.config import Config, build_config, load_config, parse_yaml, to_dict
from grasp_lora.data import load_splits
from grasp_lora.errors import DataError, GraspError
from grasp_lora.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from grasp_lora.pipeline.adapters import read_adapter
from grasp_lora.pipeline.comparison import compare_config
from grasp_lora.pipeline.comparison.units import adapter_units, cells_of
from grasp_lora.pipeline.models import load_base
from grasp_lora.pipeline.search import search
from grasp_lora.pipeline.stageio import StageIO
from grasp_lora.report.true_curve import GRID, SIDES, curve, regrets
from grasp_lora.runs import read_json, write_json_atomic
from grasp_lora.training.setup import Base, Setup

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "compare"


class Recorder(StageIO):
    """Keeps the rounds of a search in memory."""

    def __init__(self) -> None:
        super().__init__("search")
        self.rounds: list[dict[str, Any]] = []

    def record_round(self, row: dict[str, Any]) -> None:
        """Keep one round."""
        self.rounds.append({key: value for key, value in row.items() if key != "time"})


def settings(args: argparse.Namespace) -> Config:
    """Return the settings of the comparison, with the search's as they are asked for."""
    tree = parse_yaml((RECORDS / "real.yaml").read_text(encoding="utf-8"), "real.yaml")
    tree["compare"] |= {"root": str(args.data.resolve())}
    tree["model"] |= {"name_or_path": str(args.backbone), "dtype": "bfloat16"}
    tree["search"] |= {"epochs": 0}
    tree["controller"] = {"policy": "ratio"}
    return compare_config(load_config(None, args.set, to_dict(build_config(tree))), ["grasp_default"])


def probed(config: Config, adapters: Sequence[Path], base: Base) -> dict[str, Any]:
    """Search on the merge of two adapters without training it."""
    setup = Setup(config, base, load_splits(config).target)
    factors: list[AdapterFactors] = [
        read_adapter(setup, str(folder), name) for folder, name in zip(adapters, ("source", "target"), strict=True)
    ]
    recorder, start = Recorder(), time.perf_counter()
    found = search(setup, factors, recorder)
    return {
        "p_star": found.p_star,
        "interval": found.interval,
        "evaluations": found.evaluations,
        "token_passes": 2 * found.probe_tokens,
        "stop_reason": found.stop_reason,
        "seconds": time.perf_counter() - start,
        "rounds": recorder.rounds,
    }


def regrets_of(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return, for dev and test, the mean regret with its interval, and the difference to the grid's ratios."""
    records = read_json(RECORDS / "real-curves.json")
    order = [(cell["name"], seed) for cell in records["cells"] for seed in records["seeds"]]
    ratios = {(cell["cell"], cell["seed"]): cell["p_star"] for cell in cells}
    measured = {(cell["name"], side): curve(cell, side) for cell in records["cells"] for side in SIDES}
    out: dict[str, Any] = {}
    for side in SIDES:
        values = [measured[name, side].regret(ratios[name, seed]) for name, seed in order]
        grid = regrets(records, GRID, side)
        if grid is None:
            raise DataError("real-curves.json: the grid's runs are not complete.")
        against = paired_bootstrap(values, list(grid.values))
        out[side] = {
            "values": values, "mean": fmean(values), "interval": bootstrap_interval(values), "grid": grid.mean,
            "less_grid": against.difference, "less_grid_interval": against.interval,
        }  # fmt: skip
    return out


def all_probed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Search on the merge of every cell and seed."""
    config = settings(args)
    base = load_base(config.model)
    cells: list[dict[str, Any]] = []
    for seed in config.compare.seeds:
        for cell in cells_of(config, seed):
            folders = [args.comparison / "stages" / unit.key / "stages" / f"{unit.role}_adapter" / "adapter"
                       for unit in adapter_units(args.comparison / "stages", cell)]  # fmt: skip
            cells.append({"cell": cell.name, "seed": seed} | probed(cell.config, folders, base))
            sys.stdout.write(f"{cell.name} {seed}: ratio {cells[-1]['p_star']:.3f}\n")
            sys.stdout.flush()
    return cells


def main() -> int:
    """Parse, probe, read the regrets off the curves, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("backbone", "data", "comparison"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        if args.backbone is None:
            record = read_json(args.out)
        else:
            record = {"settings": args.set, "versions": versions(), "cells": all_probed(args)}
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    record["regret"] = regrets_of(record["cells"])
    for side, found in record["regret"].items():
        sys.stdout.write(
            f"{side}: mean regret {found['mean']:.4f} {found['interval']}, grid {found['grid']:.4f}, "
            f"difference {found['less_grid']:.4f} {found['less_grid_interval']}\n"
        )
    write_json_atomic(args.out, record)
    return 0


def versions() -> dict[str, Any]:
    """Return what the searches ran on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__,
            "device": "cuda" if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
