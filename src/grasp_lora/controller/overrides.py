"""Controller settings from a command line, for commands that have no training run around the controller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..config import ControllerConfig, build_config, parse_overrides
from ..errors import ConfigError


def controller_overrides(
    sets: Iterable[str], preset: str | None = None, without_effect: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return `controller.key=value` pairs and a preset as settings of `ControllerConfig`.

    `without_effect` names settings that would do nothing in the command at hand, with the reason.

    Raises:
        ConfigError: a pair of another section, or one without effect.

    """
    tree = parse_overrides(sets)
    for section in tree:
        if section != "controller":
            raise ConfigError(f"--set {section}: only controller.KEY=VALUE has an effect here. Leave it out.")
    found = tree.get("controller") or {}
    if not isinstance(found, dict):
        raise ConfigError(f"--set controller: a section, not a value (got {found!r}). Use controller.KEY=VALUE.")
    for key, reason in (without_effect or {}).items():
        if key in found:
            raise ConfigError(f"--set controller.{key}: has no effect here, {reason}. Leave it out.")
    return found if preset is None else {"preset": preset, **found}


def controller_config(*layers: Mapping[str, Any]) -> ControllerConfig:
    """Return the settings of all layers, later ones first in rank; raises `ConfigError` for a bad one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    return build_config({"controller": merged}).controller
