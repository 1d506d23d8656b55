"""Attach merged factors to a model's linear modules by forward hooks; the model's own code and tree stay untouched.

Any module that maps `x` of shape (batch, tokens, d_in) to (batch, tokens, d_out) can carry an update, whatever class
holds its weight (plain, 4-bit, Conv1D). A pass runs inside `Injection.active(...)`, which says which factors to add;
outside of it the model is the bare base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ModelError
from .merge import Pair

# Models that a merge stands in: their own passes are not those of the bare base model.
_STANDING: WeakSet[nn.Module] = WeakSet()


def carries_merge(model: nn.Module) -> bool:
    """Return whether merged adapters stand in `model` (`Injection.stand`), so that it is not the bare base model."""
    return model in _STANDING


class Removable(Protocol):
    """Something done to a model that can be taken back."""

    def remove(self) -> None:
        """Take it back."""


@dataclass
class _Pass:
    """What the hooks add during one pass. `groups`: how many candidates share the batch, group-major."""

    factors: Mapping[str, Pair]
    groups: int | None
    dropout: float
    standing: bool = False


class ChannelNorms:
    """Squared L2 norm over tokens of every input channel, gathered by hooks during passes that happen anyway.

    A module's sum stays one tensor that changes in place, so that a recorded CUDA graph goes on adding to it; `filled`
    says whether anything was added since the last reset.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.tokens = 0
        self.filled = False
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # input, mask and squares of the newest module

    def reset(self) -> None:
        """Forget everything; called at each selection of a mask."""
        if self.squares:
            torch._foreach_zero_(list(self.squares.values()))
        self.tokens = 0
        self.filled = False

    def add(self, module: str, x: Tensor, mask: Tensor) -> None:
        """Add the squares of `x` (batch, tokens, d_in) where `mask` (batch, tokens) is 1, in at least float32."""
        if x.dim() != 3 or x.shape[:2] != mask.shape:
            raise ModelError(
                f"prune.importance: activation cannot follow {module}: its input has shape {tuple(x.shape)}, not "
                "(batch, tokens, channels). Use --set prune.importance=magnitude or leave the module out."
            )
        total = self._squares(x, mask)
        if module in self.squares:
            self.squares[module].add_(total)
        else:
            self.squares[module] = total.clone()
        self.filled = True

    def _squares(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the sums of squares of `x` where `mask` is 1; modules side by side are given the same `x`."""
        if self._last is None or self._last[0] is not x or self._last[1] is not mask:
            wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
            total = (wide * mask.unsqueeze(-1).to(wide.dtype)).square_().sum(dim=(0, 1))
            self._last = x, mask, total
        return self._last[2]

    def forget(self) -> None:
        """Let go of the newest input, which would be kept in memory."""
        self._last = None

    def norms(self) -> dict[str, Tensor]:
        """Return `x_j` per module, shape (d_in,); nothing where nothing was added."""
        if not self.filled:
            return {}
        roots = torch._foreach_sqrt(list(self.squares.values()))
        return dict(zip(self.squares, roots, strict=True))


class _Site:
    """One adapted module and what the current pass adds there.

    An object of plain attributes, so that a compiler that has seen one layer knows them all.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.groups: int | None = None
        self.dropout = 0.0
        # The output of this class is new memory that nobody else looks at, so without gradients it may be added to.
        self.fresh = type(module) is nn.Linear


class Injection:
    """Forward hooks on `modules` of `model`; `close` removes them. One injection serves training, probing and dev."""

    def __init__(self, model: nn.Module, modules: Iterable[str]) -> None:
        self._model, named = model, dict(model.named_modules())
        self._pass: _Pass | None = None
        self._gather: tuple[ChannelNorms, Tensor] | None = None
        self._handles: list[Removable] = []
        self._sites: list[_Site] = []
        self._standing = False
        for name in modules:
            if name not in named:
                self.close()
                raise AdapterError(f"the base model has no module '{name}'. Use adapters of this base model.")
            site = _Site(name, named[name])
            self._sites.append(site)
            self._handles.append(named[name].register_forward_hook(self._hook(site)))

    def close(self) -> None:
        """Remove all hooks; the model is again as it came."""
        for handle in reversed(self._handles):
            handle.remove()
        if self._standing:
            _STANDING.discard(self._model)
        self._standing = False
        self._handles.clear()
        self._enter(None)

    def keep(self, change: Removable) -> None:
        """Let `close` take back one more change of the model."""
        self._handles.append(change)

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
        before = self._pass
        self._enter(_Pass(factors, groups, dropout))
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, current: _Pass | None) -> None:
        """Tell every site what the pass adds there."""
        self._pass = current
        for site in self._sites:
            pair = None if current is None else current.factors.get(site.name)
            site.a, site.b = (None, None) if pair is None else pair
            site.groups, site.dropout = (None, 0.0) if current is None else (current.groups, current.dropout)

    def stand(self, backbone: nn.Module, factors: Callable[[], Mapping[str, Pair]]) -> None:
        """Add `factors()`, asked for at the start of each pass of `backbone`, outside of `active` blocks too.

        For loops that are not ours. The factors of a pass stay in place until the next one, since the backward of a
        checkpointed pass runs the hooks again; `close` ends it.
        """

        def arm(_module: nn.Module, _args: object) -> None:
            if self._pass is None or self._pass.standing:
                self._enter(_Pass(factors(), None, 0.0, standing=True))

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
            norms.forget()

    @property
    def grouped(self) -> bool:
        """Return whether the current pass holds several candidates."""
        return self._pass is not None and self._pass.groups is not None

    @property
    def gathers(self) -> bool:
        """Return whether passes feed channel norms now."""
        return self._gather is not None

    def _hook(self, site: _Site) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._gather is not None:
                self._gather[0].add(site.name, args[0], self._gather[1])
            if site.a is None or site.b is None:
                return None
            x = args[0]
            if site.dropout > 0.0:
                x = nn.functional.dropout(x, site.dropout)
            if site.groups is not None:
                return _grouped(site, x, site.a, site.b, output)
            low = x @ site.a.to(x).T
            if low.dtype != output.dtype:
                return output + (low @ site.b.to(x).T).to(output.dtype)
            rows = output.flatten(0, -2)
            return torch.addmm(rows, low.flatten(0, -2), site.b.to(x).T).view(output.shape)

        return hook


def _grouped(site: _Site, x: Tensor, a: Tensor, b: Tensor, output: Tensor) -> Tensor:
    """Return `output` (G b, T, d_out) plus every group's update: x (G b, T, d_in), a (G, R, d_in), b (G, d_out, R)."""
    groups = site.groups or 1
    if x.dim() != 3 or x.shape[0] % groups:
        raise ModelError(
            f"{site.name} cannot be probed in one pass: its input has shape {tuple(x.shape)} for {groups} candidates. "
            "Leave the module out of the adapters."
        )
    # Flattened first: a compiler that sees as many rows as candidates would take that for a rule.
    inside, flat = (tensor.flatten(0, 1).view(groups, -1, tensor.shape[-1]) for tensor in (x, output))
    low = torch.bmm(inside, a.to(x).transpose(1, 2)).to(output.dtype)
    up = b.to(output).transpose(1, 2)
    in_place = site.fresh and not torch.is_grad_enabled()
    added = flat.baddbmm_(low, up) if in_place else torch.baddbmm(flat, low, up)
    return added.flatten(0, 1).view(output.shape)
