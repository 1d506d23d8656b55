"""GRASP itself: the controller learns the ratio on micro-dev, then one final run at it."""

from __future__ import annotations

from functools import partial

from ..config import TRAINED_EPOCHS, Config, ControllerConfig
from .method import Method, MethodContext, MethodResult, register
from .recommended import continued_source, with_recommended

SECTION = "https://arxiv.org/abs/2601.06702, section 3"


def with_preset(config: Config, preset: str) -> Config:
    """Return `config` with the controller's preset; another preset than configured has its own defaults.

    How often it probes, how many candidates, how many rounds and the seed stay as configured.
    """
    controller = config.controller
    if controller.preset != preset:
        controller = ControllerConfig.model_validate(
            {
                "preset": preset, "interval": controller.interval, "candidates": controller.candidates,
                "rounds": controller.rounds, "seed": controller.seed,
            }
        )  # fmt: skip
    return config.model_copy(update={"controller": controller})


def _grasp(context: MethodContext, *, preset: str, adapter: str) -> MethodResult:
    config = with_preset(context.config, preset)
    config = config.model_copy(update={"finalize": config.finalize.model_copy(update={"adapter": adapter})})
    if not config.search.epochs and (preset == "released" or adapter == "reuse"):  # these cannot do without
        config = config.model_copy(update={"search": config.search.model_copy(update={"epochs": TRAINED_EPOCHS})})
    found, final = context.bench.grasp(context.adapters, config)
    return MethodResult(final.bank, found.ratio, found.interval, details=found.details)


def _recommended(context: MethodContext) -> MethodResult:
    config = with_recommended(context.config)
    found, final = context.bench.grasp([continued_source(context, config), *context.adapters[1:]], config)
    return MethodResult(final.bank, found.ratio, found.interval, details=found.details)


def _method(name: str, title: str, formula: str, preset: str, adapter: str = "fresh") -> Method:
    make = partial(_grasp, preset=preset, adapter=adapter)
    return Method(name, title, formula, SECTION, ("train", "dev", "micro_dev"), "all", make, runs=True, prunes=True)


register(
    _method("grasp_released", "GRASP released", "controller preset `released`, then a final run", "released"),
    _method("grasp_default", "GRASP default", "controller preset `default`, then a final run", "default"),
    _method(
        "grasp_reuse", "GRASP default, adapter reused", "preset `default`; the search goes on at what it learned",
        "default", "reuse",
    ),
    Method(
        "grasp_recommended", "GRASP recommended", "ratio of the average of target and sequential, by probes "
        "alone; a final run, or the average as it came where dev says so", SECTION,
        ("train", "dev", "micro_dev"), "all", _recommended, runs=True, prunes=True,
    ),
)  # fmt: skip
