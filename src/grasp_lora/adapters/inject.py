"""Attach merged factors to a model's linear modules by forward hooks; the model's own code and tree stay untouched.

Any module that maps `x` of shape (batch, tokens, d_in) to (batch, tokens, d_out) can carry an update, whatever class
holds its weight (plain, 4-bit, Conv1D). A pass runs inside `Injection.active(...)`, which says which factors to add;
outside of it the model is the bare base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import AdapterError, ModelError
from .merge import Pair

# Models that a merge stands in: their own passes are not those of the bare base model.
_STANDING: WeakSet[nn.Module] = WeakSet()


def carries_merge(model: nn.Module) -> bool:
    """Return whether merged adapters stand in `model` (`Injection.stand`), so that it is not the bare base model."""
    return model in _STANDING


@dataclass
class _Pass:
    """What the hooks add during one pass. `groups`: how many candidates share the batch, group-major."""

    factors: Mapping[str, Pair]
    groups: int | None
    dropout: float
    standing: bool = False


class ChannelNorms:
    """Squared L2 norm over tokens of every input channel, gathered by hooks during passes that happen anyway."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.tokens = 0

    def reset(self) -> None:
        """Forget everything; called at each selection of a mask."""
        self.squares.clear()
        self.tokens = 0

    def add(self, module: str, x: Tensor, mask: Tensor) -> None:
        """Add the squares of `x` (batch, tokens, d_in) where `mask` (batch, tokens) is 1, in at least float32."""
        if x.dim() != 3 or x.shape[:2] != mask.shape:
            raise ModelError(
                f"prune.importance: activation cannot follow {module}: its input has shape {tuple(x.shape)}, not "
                "(batch, tokens, channels). Use --set prune.importance=magnitude or leave the module out."
            )
        wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
        total = (wide * mask.unsqueeze(-1).to(wide.dtype)).square().sum(dim=(0, 1))
        old = self.squares.get(module)
        self.squares[module] = total if old is None else old + total

    def norms(self) -> dict[str, Tensor]:
        """Return `x_j` per module, shape (d_in,)."""
        return {module: square.sqrt() for module, square in self.squares.items()}


class Injection:
    """Forward hooks on `modules` of `model`; `close` removes them. One injection serves training, probing and dev."""

    def __init__(self, model: nn.Module, modules: Iterable[str]) -> None:
        self._model, named = model, dict(model.named_modules())
        self._pass: _Pass | None = None
        self._gather: tuple[ChannelNorms, Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._standing = False
        for name in modules:
            if name not in named:
                self.close()
                raise AdapterError(f"the base model has no module '{name}'. Use adapters of this base model.")
            self._handles.append(named[name].register_forward_hook(self._hook(name)))

    def close(self) -> None:
        """Remove all hooks; the model is again as it came."""
        for handle in self._handles:
            handle.remove()
        if self._standing:
            _STANDING.discard(self._model)
        self._standing = False
        self._handles.clear()
        self._pass = None

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def active(self, factors: Mapping[str, Pair], *, groups: int | None = None, dropout: float = 0.0) -> Iterator[None]:
        """Add `factors` to every pass inside the block, the backward of a checkpointed pass included.

        With `groups=G`, factors have a leading dimension G and the batch holds G blocks of equal size, one per
        candidate. Factors follow each module's input to its device and precision.
        """
        before, self._pass = self._pass, _Pass(factors, groups, dropout)
        try:
            yield
        finally:
            self._pass = before

    def stand(self, backbone: nn.Module, factors: Callable[[], Mapping[str, Pair]]) -> None:
        """Add `factors()`, asked for at the start of each pass of `backbone`, outside of `active` blocks too.

        For loops that are not ours. The factors of a pass stay in place until the next one, since the backward of a
        checkpointed pass runs the hooks again; `close` ends it.
        """

        def arm(_module: nn.Module, _args: object) -> None:
            if self._pass is None or self._pass.standing:
                self._pass = _Pass(factors(), None, 0.0, standing=True)

        self._handles.append(backbone.register_forward_pre_hook(arm))
        self._standing = True
        _STANDING.add(self._model)

    @contextmanager
    def gathering(self, norms: ChannelNorms, mask: Tensor) -> Iterator[None]:
        """Feed `norms` with the tokens where `mask` (batch, tokens) is 1.

        Wrap the forward only: gradient checkpointing runs hooks again in the backward, which must not count twice.
        """
        before, self._gather = self._gather, (norms, mask)
        try:
            yield
        finally:
            self._gather = before

    def _hook(self, name: str) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._gather is not None:
                self._gather[0].add(name, args[0], self._gather[1])
            current = self._pass
            if current is None or name not in current.factors:
                return None
            a, b = current.factors[name]
            x = args[0]
            if current.dropout > 0.0:
                x = nn.functional.dropout(x, current.dropout)
            if current.groups is not None:
                return output + _grouped(name, x, a, b, current.groups).to(output.dtype)
            return output + (x @ a.to(x).T @ b.to(x).T).to(output.dtype)

        return hook


def _grouped(name: str, x: Tensor, a: Tensor, b: Tensor, groups: int) -> Tensor:
    """Return the update of every group: x (G b, T, d_in), a (G, R, d_in), b (G, d_out, R) -> (G b, T, d_out)."""
    if x.dim() != 3 or x.shape[0] % groups:
        raise ModelError(
            f"{name} cannot be probed in one pass: its input has shape {tuple(x.shape)} for {groups} candidates. "
            "Leave the module out of the adapters."
        )
    flat = x.reshape(groups, -1, x.shape[-1])
    low = torch.bmm(flat, a.to(x).transpose(1, 2))
    return torch.bmm(low, b.to(x).transpose(1, 2)).reshape(*x.shape[:-1], b.shape[1])
