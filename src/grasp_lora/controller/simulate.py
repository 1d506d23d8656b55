"""Judge a controller on landscape files in seconds, without a model.

python -m grasp_lora.controller.simulate LANDSCAPE.json [...] [--preset default] [--seeds 200] [--rounds 50]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from ..config import ControllerConfig
from ..errors import ConfigError
from .controller import Controller
from .landscape import Landscape, Slice, read_landscape


def run_controller(landscape: Landscape, config: ControllerConfig, seed: int, rounds: int) -> Controller:
    """Run up to R rounds on one slice, within R (C + 1) evaluations, and return the controller."""
    slice_ = Slice(landscape, seed)
    controller = Controller(config, seed)
    budget = rounds * (controller.settings.candidates + 1)
    for t in range(rounds + 1):
        proposal = controller.ask(t)
        if proposal is None:
            continue
        if len(controller.history) + len(proposal.samples) + 1 > budget:
            continue  # a first look that does not fit into very few rounds is left out
        baseline = slice_.losses(controller.applied_ratio, t)
        controller.tell(proposal, baseline, np.stack([slice_.losses(p, t) for p in proposal.samples]))
        if controller.should_stop() is not None:
            break
    return controller


def run_seed(landscape: Landscape, config: ControllerConfig, rounds: int, seed: int) -> dict[str, Any]:
    """Return p_star, interval, regret, evaluations, last round and coverage of one simulated run."""
    controller = run_controller(landscape, config, seed, rounds)
    found = controller.estimate()
    return {
        "p_star": found.p_star,
        "interval": None if found.interval is None else list(found.interval),
        "regret": landscape.regret(found.p_star),
        "evaluations": len(controller.history),
        "rounds": controller.state.round,
        "covered": None if found.interval is None else landscape.covered(*found.interval),
    }


def simulate(
    landscapes: Sequence[Landscape],
    config: ControllerConfig,
    *,
    seeds: int = 200,
    rounds: int = 50,
    first_seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Return `{"landscapes": [...]}` with p_star, intervals, regret (nats), evaluations, coverage and width of each.

    Raises:
        ConfigError: no landscape, no seed or no round.

    """
    for name, value in (
        ("landscape", len(landscapes)),
        ("seeds", seeds),
        ("rounds", rounds),
        ("workers", workers),
    ):
        if value < 1:
            raise ConfigError(f"--{name}: at least 1 is needed (got {value}). Give a larger number.")
    jobs = range(first_seed, first_seed + seeds)
    reports = []
    for landscape in landscapes:
        results = _spread(partial(run_seed, landscape, config, rounds), jobs, workers)
        reports.append(_summary(landscape, config, results))
    return {"landscapes": reports}


def _spread(run: Callable[[int], dict[str, Any]], seeds: Sequence[int], workers: int) -> list[dict[str, Any]]:
    if workers == 1:
        return [run(seed) for seed in seeds]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run, seeds, chunksize=max(1, len(seeds) // (4 * workers))))


def _summary(landscape: Landscape, config: ControllerConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    regret = np.array([r["regret"] for r in results])
    intervals = [r["interval"] for r in results]
    known = [r for r in results if r["interval"] is not None]
    return {
        "name": landscape.name,
        "preset": config.preset,
        "seeds": len(results),
        "p_star": [r["p_star"] for r in results],
        "interval": intervals,
        "regret": {"mean": float(regret.mean()), "p90": float(np.quantile(regret, 0.9))},
        "evaluations": float(np.mean([r["evaluations"] for r in results])),
        "rounds": float(np.mean([r["rounds"] for r in results])),
        "coverage": float(np.mean([r["covered"] for r in known])) if known else None,
        "width": float(np.mean([r["interval"][1] - r["interval"][0] for r in known])) if known else None,
    }


def table(report: dict[str, Any]) -> str:
    """Return the summary as plain text, one landscape per line."""
    names = ("regret", "p90", "evals", "coverage", "width", "p_star")
    lines = [f"{'landscape':24} {'preset':9} " + " ".join(f"{n:>8}" for n in names)]
    for row in report["landscapes"]:
        coverage, width = (f"{row[k]:.2f}" if row[k] is not None else "-" for k in ("coverage", "width"))
        lines.append(
            f"{row['name']:24} {row['preset']:9} {row['regret']['mean']:8.5f} {row['regret']['p90']:8.5f} "
            f"{row['evaluations']:8.1f} {coverage:>8} {width:>8} {np.mean(row['p_star']):8.3f}"
        )
    mean = np.mean([row["regret"]["mean"] for row in report["landscapes"]])
    spent = np.mean([row["evaluations"] for row in report["landscapes"]])
    lines.append(f"{'mean':24} {'':9} {mean:8.5f} {'':8} {spent:8.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table (or JSON) for landscape files; the full command line has the same under `simulate`."""
    parser = argparse.ArgumentParser(description="judge a controller on landscape files")
    parser.add_argument("landscapes", nargs="+")
    parser.add_argument("--preset", default="default", choices=["default", "released"])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-early-stop", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    config = ControllerConfig(preset=given.preset, early_stop=not given.no_early_stop)
    lands = [read_landscape(path) for path in given.landscapes]
    report = simulate(lands, config, seeds=given.seeds, rounds=given.rounds, workers=given.workers)
    sys.stdout.write((json.dumps(report) if given.json else table(report)) + "\n")


if __name__ == "__main__":
    main()
