"""Where a merge stands: how much of it is pruned, and how strongly its adapters are added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MergePoint:
    """A prune ratio with the strengths that belong to it; what a search learns and a final run takes.

    Attributes:
        ratio: prune ratio, 0 to 1, of every tensor that `ratios` does not name.
        strength: factor on `merge.strength`.
        weights: factors on the weights w_k of the adapters, in their order; empty: all 1.
        ratios: own ratios, by the name of an adapter or of a module type (the last part of a module's name).

    """

    ratio: float
    strength: float = 1.0
    weights: tuple[float, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)

    def of(self, adapter: str, module_type: str) -> float:
        """Return the ratio of a tensor of this adapter in a module of this type."""
        return self.ratios.get(adapter, self.ratios.get(module_type, self.ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "ratio": self.ratio,
            "strength": self.strength,
            "weights": list(self.weights),
            "ratios": dict(self.ratios),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> MergePoint:
        """Rebuild from `to_dict`."""
        return cls(
            float(saved["ratio"]),
            float(saved["strength"]),
            tuple(float(w) for w in saved["weights"]),
            {str(name): float(p) for name, p in saved["ratios"].items()},
        )

    def describe(self) -> str:
        """Return the point in words, for a report."""
        parts = [f"ratio {self.ratio:.3f}"] if not self.ratios else []
        parts += [f"ratio of {name} {p:.3f}" for name, p in self.ratios.items()]
        if self.strength != 1.0:
            parts.append(f"strength {self.strength:.3f}")
        if self.weights:
            parts.append(f"weights {', '.join(f'{w:.3f}' for w in self.weights)}")
        return ", ".join(parts)
