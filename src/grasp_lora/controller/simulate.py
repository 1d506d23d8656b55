"""Judge a controller on landscape files in seconds, without a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ControllerConfig
from ..errors import ConfigError
from .controller import Controller
from .landscape import Landscape
from .overrides import controller_config, controller_overrides
from .presets import resolve
from .slices import AnyLandscape, Slice, read_landscape

WITHOUT_EFFECT = {
    "interval": "since landscapes count rounds and not optimizer steps",
    "seed": "since seeds are counted from 0 (--seeds)",
    "rounds": "since the rounds are given by --rounds",
    **dict.fromkeys(("policy", "strength_min", "strength_max"), "since a landscape file has its own coordinates"),
}
FEW_SEEDS = 16
"""Below this many seeds in all, starting processes takes longer than they save."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_controller(landscape: AnyLandscape, config: ControllerConfig, seed: int, rounds: int) -> Controller:
    """Run up to R rounds on one slice, within R (C + 1) evaluations, and return the controller."""
    slice_ = Slice(landscape, seed)
    controller = Controller(config, seed, axes=landscape.axes)
    budget = rounds * (controller.settings.candidates + 1)
    for t in range(rounds + 1):
        proposal = controller.ask(t)
        if proposal is None:
            continue
        if len(controller.history) + len(proposal.samples) + 1 > budget:
            continue  # a first look that does not fit into very few rounds is left out
        baseline = slice_.losses(controller.applied_point, t)
        controller.tell(proposal, baseline, np.stack([slice_.losses(point, t) for point in proposal.points]))
        if controller.should_stop() is not None:
            break
    return controller


def run_seed(landscape: AnyLandscape, config: ControllerConfig, rounds: int, seed: int) -> dict[str, Any]:
    """Return p_star, interval, regret, evaluations, last round and coverage of one simulated run."""
    controller = run_controller(landscape, config, seed, rounds)
    found = controller.estimate()
    box = found.intervals
    if isinstance(landscape, Landscape):
        regret, covered = landscape.regret(found.p_star), None if box is None else landscape.covered(*box[0])
    else:
        regret, covered = landscape.regret(found.best), None if box is None else landscape.covered(box)
    return {
        "p_star": found.p_star,
        "best": list(found.best),
        "interval": None if found.interval is None else list(found.interval),
        "regret": regret,
        "evaluations": len(controller.history),
        "rounds": controller.state.round,
        "covered": covered,
    }


def simulate_files(
    paths: Sequence[str | Path],
    *,
    preset: str | None = None,
    sets: Iterable[str] = (),
    seeds: int,
    rounds: int,
    workers: int | None = None,
) -> tuple[list[AnyLandscape], dict[str, Any]]:
    """Simulate the controller of a preset and `controller.key=value` pairs on landscape files.

    Returns the landscapes and the report of `simulate`. `workers` defaults to one process per core.

    Raises:
        ConfigError: bad settings, or nothing to do.
        DataError: a file that is no landscape.

    """
    config = controller_config(controller_overrides(sets, preset, WITHOUT_EFFECT))
    landscapes = [read_landscape(path) for path in paths]
    if workers is None:
        workers = _cores() if seeds * len(landscapes) >= FEW_SEEDS else 1
    return landscapes, simulate(landscapes, config, seeds=seeds, rounds=rounds, workers=workers)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def simulate(
    landscapes: Sequence[AnyLandscape],
    config: ControllerConfig,
    *,
    seeds: int,
    rounds: int,
    first_seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Return `{"landscapes": [...]}` with p_star, intervals, regret (nats), evaluations, coverage and width of each.

    Raises:
        ConfigError: no landscape, no seed or no round, bounds that contradict each other, or a preset that does not
            know all coordinates.

    """
    for name, value in (
        ("landscape", len(landscapes)),
        ("seeds", seeds),
        ("rounds", rounds),
        ("workers", workers),
    ):
        if value < 1:
            raise ConfigError(f"--{name}: at least 1 is needed (got {value}). Give a larger number.")
    for landscape in landscapes:
        if config.preset == "released" and landscape.dimensions > 1:
            raise ConfigError(
                f"controller.preset: released learns a ratio only, and landscape {landscape.name} has "
                f"{landscape.dimensions} coordinates. Simulate it under another preset."
            )
    resolve(config)  # bad bounds are one error here, not one in every process
    jobs = range(first_seed, first_seed + seeds)
    with _mapping(workers) as spread:
        results = [list(spread(partial(run_seed, landscape, config, rounds), jobs)) for landscape in landscapes]
    return {"landscapes": [_summary(land, config, found) for land, found in zip(landscapes, results, strict=True)]}


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable[dict[str, Any]]]]:
    """Yield `map`, over processes where there is more than one worker."""
    if workers == 1:
        yield map
        return
    before = {name: os.environ.get(name) for name in THREADS}
    # Read by the children when they import numpy: threads on matrices this small only get in each other's way.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield partial(pool.map, chunksize=4)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _summary(landscape: AnyLandscape, config: ControllerConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    regret = np.array([r["regret"] for r in results])
    intervals = [r["interval"] for r in results]
    known = [r for r in results if r["interval"] is not None]
    second = {} if landscape.dimensions == 1 else {"best": [r["best"] for r in results]}
    return {
        "name": landscape.name,
        "preset": config.preset,
        "seeds": len(results),
        "p_star": [r["p_star"] for r in results],
        "interval": intervals,
        "regret": {"mean": float(regret.mean()), "p90": float(np.quantile(regret, 0.9))},
        "evaluations": float(np.mean([r["evaluations"] for r in results])),
        "coverage": float(np.mean([r["covered"] for r in known])) if known else None,
        "width": float(np.mean([r["interval"][1] - r["interval"][0] for r in known])) if known else None,
        **second,
    }
