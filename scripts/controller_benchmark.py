"""Compare ways to find a prune ratio on landscape files and on families of made-up landscapes; prints Markdown tables.

    python scripts/controller_benchmark.py --landscape FILE [--landscape FILE ...] --seeds 200 --optuna-seeds 20
    python scripts/controller_benchmark.py --families development --seeds 40
    python scripts/controller_benchmark.py --families held-out --seeds 100

Every rival spends R (C + 1) evaluations in R rounds of a baseline at 0.4 and C trials, and sees the paired difference
of each trial to its round's baseline. Optuna (`pip install optuna`) is needed for `--optuna-seeds` only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from grasp_lora.config import ControllerConfig
from grasp_lora.controller.families import FAMILIES, Split, member
from grasp_lora.controller.landscape import Landscape, Slice, read_landscape
from grasp_lora.controller.simulate import run_seed
from grasp_lora.rng import derive_seed, numpy_generator

Job = tuple[Landscape, int]
Row = tuple[float, int, bool | None, float | None]
Vector = NDArray[np.float64]
C, LOW, HIGH, BASELINE = 3, 0.0, 0.95, 0.4


def with_controller(changes: dict[str, Any], rounds: int, job: Job) -> Row:
    """Run the controller under a changed configuration; returns regret, evaluations, coverage and width."""
    found = run_seed(job[0], ControllerConfig(**changes), rounds, job[1])
    interval = found["interval"]
    return found["regret"], found["evaluations"], found["covered"], interval and interval[1] - interval[0]


def with_optuna(sampler: str, rounds: int, job: Job) -> Row:
    """Ask an Optuna sampler for C ratios per round and answer with the best trial's ratio."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape, seed = job
    own = derive_seed(seed, "optuna", landscape.name) % 2**31
    chosen = optuna.samplers.TPESampler(seed=own) if sampler == "TPE" else optuna.samplers.GPSampler(seed=own)
    study = optuna.create_study(sampler=chosen)
    slice_ = Slice(landscape, seed)
    for t in range(1, rounds + 1):
        trials = [study.ask() for _ in range(C)]
        base = slice_.losses(BASELINE, t).mean()
        for trial in trials:
            study.tell(trial, float(slice_.losses(trial.suggest_float("p", LOW, HIGH), t).mean() - base))
    return landscape.regret(study.best_params["p"]), rounds * (C + 1), None, None


def with_parabola(rounds: int, job: Job) -> Row:
    """Fit one parabola to the paired differences of uniform draws and take its minimum within the bounds."""
    landscape, seed = job
    rng, slice_ = numpy_generator(seed, "parabola", landscape.name), Slice(landscape, seed)
    ratios, gaps = [], []
    for t in range(1, rounds + 1):
        base = slice_.losses(BASELINE, t).mean()
        for p in rng.uniform(LOW, HIGH, C):
            ratios.append(p)
            gaps.append(slice_.losses(p, t).mean() - base)
    grid = np.linspace(LOW, HIGH, 191)
    best = grid[np.polyval(np.polyfit(ratios, gaps, 2), grid).argmin()]
    return landscape.regret(float(best)), rounds * (C + 1), None, None


def with_grid(job: Job) -> Row:
    """Eight full runs, each judged once on 50 settled examples: what the controller is meant to replace."""
    landscape, seed = job
    rng = numpy_generator(seed, "grid", landscape.name)
    shifts = rng.normal(0, landscape.shift_sd, 50)
    points = np.linspace(0.1, 0.8, 8)
    noise = landscape.noise_sd * np.sqrt(landscape.examples)
    losses = [float(np.mean(landscape.curve(p + shifts) + rng.normal(0, noise, 50))) for p in points]
    return landscape.regret(float(points[int(np.argmin(losses))])), 8, None, None


def rivals(rounds: int, optuna: bool) -> dict[str, Callable[[Job], Row]]:
    """Return every way to find a ratio, by name."""
    ways: dict[str, Callable[[Job], Row]] = {
        "default": partial(with_controller, {}, rounds),
        "default, no early stop": partial(with_controller, {"early_stop": False}, rounds),
        "released": partial(with_controller, {"preset": "released"}, rounds),
        "8-point grid (8 full runs)": with_grid,
        "parabola": partial(with_parabola, rounds),
    }
    if optuna:
        ways |= {f"Optuna {name}": partial(with_optuna, name, rounds) for name in ("TPE", "GP")}
    return ways


def report(title: str, groups: dict[str, list[Job]], ways: dict[str, Callable[[Job], Row]], workers: int) -> None:
    """Print one table: a line per way, a column of mean regret per group, then the means over groups."""
    print(f"\n### {title}\n")
    print(f"| rule | {' | '.join(groups)} | mean | evaluations | coverage | width |")
    print("|" + " --- |" * (len(groups) + 5))
    with ProcessPoolExecutor(workers) as pool:
        for name, way in ways.items():
            rows = [list(pool.map(way, jobs, chunksize=2)) for jobs in groups.values()]
            regrets = [float(np.mean([r[0] for r in part])) for part in rows]
            spent = float(np.mean([np.mean([r[1] for r in part]) for part in rows]))
            line = [f"{value:.5f}" for value in (*regrets, float(np.mean(regrets)))] + [f"{spent:.0f}"]
            print(f"| {name} | " + " | ".join(line + _intervals(rows)) + " |", flush=True)


def _intervals(rows: Sequence[Sequence[Row]]) -> list[str]:
    if any(r[2] is None for part in rows for r in part):
        return ["-", "-"]
    covered = " / ".join(f"{np.mean([bool(r[2]) for r in part]):.2f}" for part in rows)
    widths = " / ".join(f"{np.mean([r[3] or 0.0 for r in part]):.2f}" for part in rows)
    return [covered, widths]


def main() -> None:
    """Parse the arguments and print the tables that were asked for."""
    parser = argparse.ArgumentParser(description="compare ways to find a prune ratio")
    parser.add_argument("--landscape", action="append", default=[])
    parser.add_argument("--families", choices=["development", "held-out"])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--optuna-seeds", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    lands = [read_landscape(path) for path in given.landscape]
    ways = rivals(given.rounds, optuna=False)
    if lands:
        jobs = {land.name: [(land, seed) for seed in range(given.seeds)] for land in lands}
        report(f"Landscape files, {given.seeds} seeds, mean regret in nats", jobs, ways, given.workers)
    if lands and given.optuna_seeds:
        few = {land.name: [(land, seed) for seed in range(given.optuna_seeds)] for land in lands}
        both = rivals(given.rounds, optuna=True)
        picked = {name: way for name, way in both.items() if name.startswith(("default", "Optuna", "parabola"))}
        report(f"Against Optuna, {given.optuna_seeds} seeds, mean regret in nats", few, picked, given.workers)
    if given.families:
        split = cast(Split, given.families)
        drawn = {name: [(member(name, split, k), k) for k in range(given.seeds)] for name in FAMILIES}
        report(
            f"Families, {split} part, {given.seeds} landscapes each, mean regret in nats", drawn, ways, given.workers
        )


if __name__ == "__main__":
    main()
