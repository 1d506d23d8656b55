"""Decoder layers compiled once: every layer of a kind runs the same code, so that compilation takes seconds.

The elementwise work of a layer (norms, rotations, activations, residuals) becomes a few kernels. Rows and lengths are
dynamic, so that no new shape compiles anew. The model stays as it is: its layers get a `forward` of their own until
`remove` takes it away.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.inject import Injection
from ..errors import first_line
from .layers import Overrides, decoder_layers

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with PyTorch's default backend."""
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled


class CompiledLayers:
    """The layers of `model` compiled for rounds of probes and, with `training`, for passes with gradients.

    Other passes run as they are: they are too few to pay for code of their own, or feed channel norms. So do the last
    layer, which does less than the others, and a first layer whose input needs no gradient. When compilation fails,
    everything does, and a warning says why, once.
    """

    def __init__(
        self, model: nn.Module, injection: Injection, *, training: bool, compiler: Compiler = inductor
    ) -> None:
        self._injection, self._training = injection, training
        self._overrides = Overrides()
        layers = decoder_layers(model)[:-1]
        self.gave_up: str | None = None if layers else "the model has no list of like layers"
        # One compiled function takes each layer as an argument: one per layer would be compiled anew for each.
        compiled = compiler(type(layers[0]).forward) if layers else None
        for layer in layers:
            if compiled is not None and "forward" not in vars(layer):
                self._overrides.set(layer, self._wrapped(layer.forward, partial(compiled, layer)))

    def remove(self) -> None:
        """Give the layers their own `forward` back."""
        self._overrides.remove()

    def _wrapped(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.gave_up is not None or not self._applies(hidden, kwargs):
                return plain(hidden, *args, **kwargs)
            _mark(hidden, kwargs)
            try:
                with warnings.catch_warnings():
                    # While it traces, PyTorch looks at the gradient of the factors, which have none of their own.
                    warnings.filterwarnings("ignore", r".*\.grad attribute of a Tensor that is not a leaf")
                    return compiled(hidden, *args, **kwargs)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                self._say(error)
            return plain(hidden, *args, **kwargs)

        return forward

    def _applies(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> bool:
        if self._injection.gathers or kwargs.get("past_key_values") is not None:
            return False
        return self._training and hidden.requires_grad if torch.is_grad_enabled() else self._injection.grouped

    def _say(self, error: Exception) -> None:
        self.gave_up = first_line(error)
        warnings.warn(f"layers are not compiled: {self.gave_up}. They run as they are, which is slower.", stacklevel=3)


def _mark(hidden: Tensor, kwargs: Mapping[str, Any]) -> None:
    """Say which sizes of a layer's inputs vary from pass to pass: rows, where there are several, and length."""
    if hidden.shape[0] > 1:
        torch._dynamo.maybe_mark_dynamic(hidden, 0)
    torch._dynamo.maybe_mark_dynamic(hidden, 1)
    rotations = kwargs.get("position_embeddings")
    positions = kwargs.get("position_ids")
    for tensor in (*(rotations if isinstance(rotations, tuple) else ()), positions):
        if isinstance(tensor, Tensor) and tensor.dim() > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
