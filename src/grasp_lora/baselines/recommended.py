"""What the recipe `recommended` merges and sets, for methods under a configuration that was made with another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..adapters.peft_load import AdapterFactors
from ..config import Config, recipe_settings
from .method import MethodContext

SEQUENTIAL = "rival_sequential"
"""The run that fine-tunes the source adapter on the target, whoever asks for it: it is trained once."""


def continued_source(context: MethodContext, config: Config | None = None) -> AdapterFactors:
    """Return the source adapter fine-tuned on the target's train split, with `train_target` (of `config`)."""
    source = context.adapters[0]
    return replace(context.bench.train(SEQUENTIAL, source, config=config), name=source.name)


def with_recommended(config: Config) -> Config:
    """Return `config` with what the recipe `recommended` sets; a policy that is set already stays."""
    wanted = recipe_settings({"recipe": "recommended", "adapters": {"others": config.adapters.others}})
    if config.controller.policy is not None:
        del wanted["controller"]["policy"]
    sections = {name: getattr(config, name).model_copy(update=_frozen(values)) for name, values in wanted.items()}
    return config.model_copy(update=sections)


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
