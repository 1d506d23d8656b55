"""Ways to find a prune ratio on a landscape, all given the same evaluations; used by controller_benchmark.py.

Every rival spends R (C + 1) evaluations in rounds 1 to R, a baseline at 0.4 and C trials in each, and works on the
difference of each trial to its round's baseline, which frees it of drift and of the examples' own levels. With
`probed` rounds fewer than R, these are spread evenly over the R, so that a rival with few evaluations still sees the
landscape settle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_lora.config import ControllerConfig
from grasp_lora.controller.landscape import Landscape
from grasp_lora.controller.simulate import run_seed
from grasp_lora.controller.slices import Slice
from grasp_lora.errors import MissingExtraError
from grasp_lora.rng import derive_seed, numpy_generator

Job = tuple[Landscape, int]
Record = dict[str, Any]
"""Regret (nats), evaluations, covered and width (None where no interval is claimed) of one run."""
Way = Callable[[Job], Record]
CANDIDATES, LOW, HIGH, BASELINE = 3, 0.0, 0.95, 0.4
FEW = 12
"""Rounds of the rivals that are held against early stopping: 48 evaluations."""


def ways(rounds: int) -> dict[str, Way]:
    """Return every way to find a ratio, by the name it has in the tables."""
    early, all_rounds = FEW * (CANDIDATES + 1), rounds * (CANDIDATES + 1)
    found: dict[str, Way] = {
        "default": partial(with_controller, {}, rounds),
        "default, no early stop": partial(with_controller, {"early_stop": False}, rounds),
        "released": partial(with_controller, {"preset": "released"}, rounds),
        "8-point grid (8 full runs)": with_grid,
    }
    for probed, evaluations in ((rounds, all_rounds), (FEW, early)):
        found |= {
            f"parabola, {evaluations}": partial(with_parabola, rounds, probed),
            f"Optuna TPE, {evaluations}": partial(with_optuna, "TPE", rounds, probed),
            f"Optuna GP, {evaluations}": partial(with_optuna, "GP", rounds, probed),
        }
    for sampler in ("TPE", "GP"):
        found[f"Optuna {sampler}, {all_rounds}, later half"] = partial(
            with_optuna, sampler, rounds, rounds, after=rounds // 2
        )
    return found


def schedule(rounds: int, probed: int) -> list[int]:
    """Return the rounds in which a rival probes: `probed` of 1 to `rounds`, evenly spread, the last included."""
    return [int(t) for t in np.ceil(np.arange(1, probed + 1) * rounds / probed)]


def _record(landscape: Landscape, ratio: float, evaluations: int) -> Record:
    return {"regret": landscape.regret(ratio), "evaluations": evaluations, "covered": None, "width": None}


def with_controller(changes: dict[str, Any], rounds: int, job: Job) -> Record:
    """Run the controller under a changed configuration."""
    found = run_seed(job[0], ControllerConfig(**changes), rounds, job[1])
    interval = found["interval"]
    width = None if interval is None else interval[1] - interval[0]
    return {**{k: found[k] for k in ("regret", "evaluations", "covered")}, "width": width}


def with_optuna(sampler: str, rounds: int, probed: int, job: Job, after: int = 0) -> Record:
    """Let an Optuna sampler choose, and take the ratio of its best trial in the rounds after `after`.

    The best trial of all is Optuna's own answer. Where the landscape settles, early gains are larger than late ones
    and win whatever their ratio; a user who knows that would look at later trials only.

    Raises:
        MissingExtraError: Optuna is not installed.

    """
    trials = [trial for trial in _optuna_trials(sampler, rounds, probed, job) if trial[0] > after]
    best = min(trials, key=lambda trial: trial[2])
    return _record(job[0], best[1], probed * (CANDIDATES + 1))


@cache
def _optuna_trials(sampler: str, rounds: int, probed: int, job: Job) -> tuple[tuple[int, float, float], ...]:
    """Return round, ratio and paired difference (nats) of every trial, each chosen after the last one's result."""
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "baselines", "comparing with Optuna's samplers") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    landscape, seed = job
    own = derive_seed(seed, "optuna", landscape.name) % 2**31
    chosen = optuna.samplers.TPESampler(seed=own) if sampler == "TPE" else optuna.samplers.GPSampler(seed=own)
    study = optuna.create_study(sampler=chosen)
    slice_ = Slice(landscape, seed)
    told = []
    for t in schedule(rounds, probed):
        base = slice_.losses(BASELINE, t).mean()
        for _ in range(CANDIDATES):
            trial = study.ask()
            ratio = trial.suggest_float("p", LOW, HIGH)
            gap = float(slice_.losses(ratio, t).mean() - base)
            study.tell(trial, gap)
            told.append((t, ratio, gap))
    return tuple(told)


def with_parabola(rounds: int, probed: int, job: Job) -> Record:
    """Fit one parabola to the paired differences of uniform draws and take its minimum within the bounds."""
    landscape, seed = job
    rng, slice_ = numpy_generator(seed, "parabola", landscape.name), Slice(landscape, seed)
    ratios: list[float] = []
    gaps: list[float] = []
    for t in schedule(rounds, probed):
        base = slice_.losses(BASELINE, t).mean()
        for p in rng.uniform(LOW, HIGH, CANDIDATES):
            ratios.append(float(p))
            gaps.append(float(slice_.losses(p, t).mean() - base))
    grid: NDArray[np.float64] = np.linspace(LOW, HIGH, 191)
    best = grid[np.polyval(np.polyfit(ratios, gaps, 2), grid).argmin()]
    return _record(landscape, float(best), probed * (CANDIDATES + 1))


def with_grid(job: Job) -> Record:
    """Eight full runs, each judged once on 50 settled examples: what the controller is meant to replace."""
    landscape, seed = job
    rng = numpy_generator(seed, "grid", landscape.name)
    shifts = rng.normal(0, landscape.shift_sd, 50)
    points = np.linspace(0.1, 0.8, 8)
    noise = landscape.noise_sd * np.sqrt(landscape.examples)
    losses = [float(np.mean(landscape.curve(p + shifts) + rng.normal(0, noise, 50))) for p in points]
    return _record(landscape, float(points[int(np.argmin(losses))]), len(points))
