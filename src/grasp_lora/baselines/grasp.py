"""GRASP itself: the controller learns the ratio on micro-dev, then one final run at it."""

from __future__ import annotations

from functools import partial

from ..config import Config, ControllerConfig, FinalizeConfig
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


def _grasp(context: MethodContext, *, preset: str, adapter: str | None = None) -> MethodResult:
    """Search and final run; `adapter` is what the final run starts from, where `finalize.adapter` offers a choice."""
    config = with_preset(context.config, preset)
    if adapter is not None:
        config = config.model_copy(update={"finalize": config.finalize.model_copy(update={"adapter": adapter})})
    found = context.bench.search("search", context.adapters, config)
    final = context.bench.finalize("finalize", context.adapters, found.ratio, config=config)
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

if "adapter" in FinalizeConfig.model_fields:
    register(
        Method(
            "grasp_reuse", "GRASP default, adapter reused", "as GRASP default; the final run goes on from the search",
            SECTION, ("train", "dev", "micro_dev"), "all", partial(_grasp, preset="default", adapter="reuse"),
            runs=True, prunes=True,
        )
    )  # fmt: skip
