"""Which modules of a model can carry LoRA: found in the model itself, never written down for an architecture.

Names are matched exactly as PEFT matches them (`peft.tuners.tuners_utils`), so that an adapter trained
elsewhere and a setting given here mean the same modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import peft
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError, ConfigError, nearest

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Targets:
    """Which modules an adapter is attached to, in PEFT's terms (fields of `peft.LoraConfig`).

    `modules`: names or name endings, or a regular expression over full names, or `all-linear`. `layers` and
    `layers_pattern` narrow a list of names to some layer indices; they do not go with a regular expression.
    """

    modules: tuple[str, ...] | str
    exclude: tuple[str, ...] | str | None = None
    layers: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None

    @property
    def all_linear(self) -> bool:
        """Whether every linear module but the output head is meant."""
        return isinstance(self.modules, str) and self.modules.lower() == ALL_LINEAR

    def _peft(self, linear: Iterable[str]) -> peft.LoraConfig:
        return peft.LoraConfig(
            target_modules=list(linear) if self.all_linear else _listed(self.modules),
            exclude_modules=_listed(self.exclude),
            layers_to_transform=_listed(self.layers),
            layers_pattern=_listed(self.layers_pattern),
        )

    def match(self, names: Iterable[str], linear: Iterable[str] = ()) -> list[str]:
        """Return the targeted ones of `names`, in their order; `linear` is what `all-linear` stands for.

        Raises `ConfigError` for a broken regular expression and for settings that do not go together.
        """
        if self.all_linear and (self.layers not in (None, ()) or self.layers_pattern):
            raise ConfigError(
                f"target_modules: '{self.modules}' does not go with layers_to_transform or layers_pattern. "
                "List the modules by name instead."
            )
        try:
            settings = self._peft(linear)
            return [name for name in names if name and check_target_module_exists(settings, name)]
        except re.error as broken:
            raise ConfigError(
                f"target_modules: {self.modules!r} or exclude_modules: {self.exclude!r} is not a valid "
                f"regular expression ({broken}). Mend it, or give a list of module names."
            ) from broken
        except ValueError as clash:
            raise ConfigError(f"target_modules: {clash} Leave one of the settings out.") from clash


def _listed(value: object) -> Any:
    """PEFT wants lists where frozen settings hold tuples."""
    return list(value) if isinstance(value, tuple) else value


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | Conv1D):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return "linear" in type(module).__name__.lower() and all(isinstance(size, int) for size in sizes)


def dims(module: nn.Module) -> tuple[int, int]:
    """Return `(d_out, d_in)` of a linear module, whatever layout (dense, transposed, 4-bit) holds its weight.

    Raises `AdapterError` for a module that is not linear.
    """
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if not _is_linear(module):
        raise AdapterError(
            f"{type(module).__name__} is not a linear module and cannot carry an adapter here. "
            "Leave it out of target_modules."
        )
    return int(cast(int, module.out_features)), int(cast(int, module.in_features))


def output_head(model: nn.Module) -> str | None:
    """Return the name of the module that gives the logits, or None when the model does not say."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None:
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def linear_modules(model: nn.Module, *, include_head: bool = False) -> dict[str, nn.Module]:
    """Return name -> module of all that is linear (`nn.Linear`, `Conv1D`, quantized linears), in model order.

    The output head is left out, as by PEFT's `all-linear`, unless asked for. Works on the meta device.
    Raises `AdapterError` when the model already carries PEFT layers.
    """
    found: dict[str, nn.Module] = {}
    head = None if include_head else output_head(model)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise AdapterError(
                f"the model already carries a PEFT adapter (at {name}). Give the bare base model: "
                "`model.unload()` takes the adapter off, `model.merge_and_unload()` folds it in."
            )
        if name and name != head and _is_linear(module):
            found[name] = module
    return found


def module_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return name -> `(d_out, d_in)` of every linear module, the output head included."""
    return {name: dims(module) for name, module in linear_modules(model, include_head=True).items()}


def suffixes(names: Iterable[str]) -> list[str]:
    """Return the distinct last parts of module names (`q_proj`, ...), sorted."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def resolve_target_modules(
    model: nn.Module,
    target_modules: tuple[str, ...] | str,
    exclude: tuple[str, ...] | str | None = None,
    layers_to_transform: tuple[int, ...] | int | None = None,
    layers_pattern: tuple[str, ...] | str | None = None,
) -> list[str]:
    """Return the full names of the modules of `model` that the settings mean, in model order.

    Matching is PEFT's: a listed entry is a full name or the end of one after a dot; a string is a regular
    expression over full names; `all-linear` is every linear module but the output head. Raises `ConfigError`
    when nothing is matched, or nothing by one listed entry, and `AdapterError` when a match is not linear.
    """
    targets = Targets(target_modules, exclude, layers_to_transform, layers_pattern)
    modules = dict(model.named_modules())
    linear, default = linear_modules(model, include_head=True), linear_modules(model)
    matched = targets.match(modules, default)
    _check_entries(targets, modules, default)
    if not matched:
        narrowed = "" if targets == Targets(target_modules) else " after exclude and layers_to_transform"
        shown = repr(target_modules if isinstance(target_modules, str) else list(target_modules))
        raise ConfigError(f"target_modules: {shown} matches no module{narrowed}. {_offer(default)}")
    for name in matched:
        if name not in linear:
            raise AdapterError(
                f"target_modules: {name} is a {type(modules[name]).__name__}, and only linear modules can "
                f"carry an adapter here. {_offer(default)}"
            )
    return matched


def _check_entries(targets: Targets, modules: Iterable[str], linear: Iterable[str]) -> None:
    """PEFT passes over a listed name that fits nowhere; here it is a typing error worth a word."""
    if isinstance(targets.modules, str):
        return
    for entry in targets.modules:
        if not Targets((entry,)).match(modules):
            hint = nearest(entry.rsplit(".", 1)[-1], suffixes(linear))
            raise ConfigError(f"target_modules: '{entry}' matches no module.{hint} {_offer(linear)}")


def _offer(linear: Iterable[str]) -> str:
    found = ", ".join(suffixes(linear)) or "none"
    return f"Linear modules found in the model: {found}. Name some of them, or use all-linear."
