"""What the controller finds when it probes the real merges as they are, held against the committed true curves.

    python scripts/real_probes.py --backbone DIR --data DIR --comparison OUT --out FILE [--set KEY=VALUE]

OUT is the folder that scripts/real_comparison.py wrote: its adapters are merged, nothing is trained. Regrets are read
off benchmarks/compare/real-curves.json. FILE is a JSON record with every evaluation, so that other settings can be
tried on it without a model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from grasp_lora.adapters.peft_load import AdapterFactors
from grasp_lora.config import Config, build_config, load_config, parse_yaml, to_dict
from grasp_lora.data import load_splits
from grasp_lora.errors import GraspError
from grasp_lora.pipeline.adapters import read_adapter
from grasp_lora.pipeline.comparison import compare_config
from grasp_lora.pipeline.comparison.units import adapter_units, cells_of
from grasp_lora.pipeline.models import load_base
from grasp_lora.pipeline.search import search
from grasp_lora.pipeline.stageio import StageIO
from grasp_lora.report.true_curve import SIDES, curve
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


def main() -> int:
    """Parse, probe, read the regrets off the curves, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("backbone", "data", "comparison", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    curves = {cell["name"]: cell for cell in read_json(RECORDS / "real-curves.json")["cells"]}
    try:
        config = settings(args)
        base = load_base(config.model)
        cells: list[dict[str, Any]] = []
        for seed in config.compare.seeds:
            for cell in cells_of(config, seed):
                folders = [args.comparison / "stages" / unit.key / "stages" / f"{unit.role}_adapter" / "adapter"
                           for unit in adapter_units(args.comparison / "stages", cell)]  # fmt: skip
                found: dict[str, Any] = probed(cell.config, folders, base)
                regret = {side: curve(curves[cell.name], side).regret(found["p_star"]) for side in SIDES}
                cells.append({"cell": cell.name, "seed": seed, "regret": regret} | found)
                sys.stdout.write(f"{cell.name} {seed}: ratio {found['p_star']:.3f}, regret {regret}\n")
                sys.stdout.flush()
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    means = {side: fmean(cell["regret"][side] for cell in cells) for side in SIDES}
    sys.stdout.write(f"mean regret {means}\n")
    write_json_atomic(args.out, {"settings": args.set, "mean_regret": means, "cells": cells})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
