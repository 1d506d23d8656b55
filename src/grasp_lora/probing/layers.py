"""The layers of a model, other code for some of its modules, and its last feed-forward block on answer positions alone.

Nothing after the last layer's attention mixes tokens, so the feed-forward block there is needed only where the head is:
about two thirds of that layer's work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# By precision of the kernels: relative to the largest number, between a layer's own code and a kernel that rounds
# once, at the end.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_BLOCKS: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's layers: the longest list of modules of one class; empty where there is none of two or more."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [layers for layers in lists if len(layers) > 1 and len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def _last_block(model: nn.Module) -> nn.Module | None:
    """Return the last layer's feed-forward block, where it is one that looks at every token by itself."""
    if model not in _BLOCKS:
        layers = decoder_layers(model) if isinstance(model, PreTrainedModel) else []
        block = getattr(layers[-1], "mlp", None) if layers else None
        known = type(block).__module__.startswith("transformers.") and type(block).__name__.endswith("MLP")
        _BLOCKS[model] = [block] if isinstance(block, nn.Module) and known else []
    return next(iter(_BLOCKS[model]), None)


def agrees(found: Tensor, wanted: object) -> bool:
    """Return whether a kernel's result is that of the layer's own code, up to the rounding of its precision."""
    if not isinstance(wanted, Tensor) or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return False
    return bool((found - wanted).abs().max() <= TOLERANCE[wanted.dtype] * wanted.abs().max())


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module of the model its own mode back after the block: parts of one that trains may not."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def evaluating(model: nn.Module, *, checkpointing: bool = False) -> Iterator[None]:
    """Put the model in evaluation mode, and its modules back into their own afterwards."""
    with modes_kept(model):
        model.eval()
        if checkpointing:
            for module in model.modules():
                module.training = getattr(module, "gradient_checkpointing", False) is True
        yield


class Overrides:
    """Modules that run other code for a while; `remove` gives them back what they had."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, Callable[..., Any] | None]] = []

    def __len__(self) -> int:
        return len(self._before)

    def set(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let `module` run `forward`."""
        self._before.append((module, vars(module).get("forward")))
        module.forward = forward

    def remove(self) -> None:
        """Undo all of it, the newest first."""
        while self._before:
            module, forward = self._before.pop()
            if forward is None:
                del module.forward
            else:
                module.forward = forward


@contextmanager
def narrowed(model: nn.Module, places: Tensor, groups: int) -> Iterator[None]:
    """Let the last feed-forward block see only the tokens at `places` (N,) of the flattened batch, inside the block.

    The N places are those of `groups` blocks of as many tokens, one after the other. Elsewhere the block's output is
    zero, which nobody may look at. Layers that compute their activations anew in the backward pass are left alone,
    since that happens outside.
    """
    block = _last_block(model)
    if block is None or len(places) % groups or (torch.is_grad_enabled() and _recomputes(model)):
        yield
        return
    shape: list[torch.Size] = []

    def cut(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape.append(args[0].shape)
        return args[0].flatten(0, 1).index_select(0, places).view(groups, -1, args[0].shape[-1]), *args[1:]

    def spread(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        batch, tokens, _ = shape.pop()
        whole = output.new_zeros(batch * tokens, output.shape[-1])
        return whole.index_copy(0, places, output.flatten(0, 1)).view(batch, tokens, -1)

    handles = [block.register_forward_pre_hook(cut), block.register_forward_hook(spread)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recomputes(model: nn.Module) -> bool:
    return any(getattr(layer, "gradient_checkpointing", False) is True for layer in decoder_layers(model)[-1:])
