"""GRASP itself: the controller learns the ratio on micro-dev, then one final run at it."""

from __future__ import annotations

from functools import partial

from ..config import Config, ControllerConfig
from .method import Method, MethodContext, MethodResult, register

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


def _grasp(context: MethodContext, *, preset: str) -> MethodResult:
    found = context.bench.search("search", context.adapters, with_preset(context.config, preset))
    final = context.bench.finalize("finalize", context.adapters, found.ratio)
    return MethodResult(final.bank, found.ratio, found.interval, details=found.details)


register(
    *(
        Method(
            f"grasp_{preset}", f"GRASP {preset}", f"controller preset `{preset}`, then a final run", SECTION,
            ("train", "dev", "micro_dev"), "all", partial(_grasp, preset=preset), runs=True, prunes=True,
        )
        for preset in ("released", "default")
    )
)  # fmt: skip
