"""The recipe `recommended` on a configuration that was made with another one."""

from __future__ import annotations

from typing import Any

from ..config import Config, recipe_settings


def with_recommended(config: Config) -> Config:
    """Return `config` with what the recipe `recommended` sets; a policy that is set already stays."""
    wanted = recipe_settings({"recipe": "recommended", "adapters": {"others": config.adapters.others}})
    if config.controller.policy is not None:
        del wanted["controller"]["policy"]
    sections = {name: getattr(config, name).model_copy(update=_frozen(values)) for name, values in wanted.items()}
    return config.model_copy(update=sections)


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
