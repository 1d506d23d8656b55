"""Figures of masks: the share of entries kept, by layer and module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..records import RunRecord
from .spec import Cells, Figure, Legend

_UNIFORM = 0.005
_ROW, _AROUND = 30, 90
_EXPORTED = {
    "sum_factors": "The exported factors are the sums of the pruned ones: an entry is zero only where every adapter's "
    "mask pruned it. So they are denser than the adapters, and the more so the less the masks agree.",
    "sum_deltas": "The exported factors hold those of all adapters side by side, so an entry is zero where its mask "
    "pruned it.",
}


def densities(record: RunRecord, prefix: str) -> list[Figure]:
    """Return the density of the pruned tensors and of the summed factors; one that is the same everywhere is left out.

    What is left out is said by `uniform`.
    """
    found = [
        _heatmap(
            f"{prefix}-density-kept",
            "Entries kept, by layer and tensor",
            "Share of entries that the final mask keeps in each adapter's own tensors (A and B, numbered by adapter in "
            "the order of the merge).",
            tensors(record),
        ),
        _heatmap(
            f"{prefix}-density-summed",
            "Entries that are not zero in the exported adapter",
            _EXPORTED[record.setting("merge.rule")],
            record.result("export").get("densities_after_summing") or {},
        ),
    ]
    return [figure for figure in found if figure is not None]


def tensors(record: RunRecord) -> Mapping[str, float]:
    """Return the share kept in every pruned tensor of the final run."""
    return record.result("finalize").get("densities") or {}


def uniform(record: RunRecord) -> str | None:
    """Say that every pruned tensor has the same density, if that is so."""
    values = list(tensors(record).values())
    if not values or max(values) - min(values) >= _UNIFORM:
        return None
    scope = record.setting("prune.scope")
    why = " because prune.scope is per_tensor" if scope == "per_tensor" else ""
    return f"Each of the {len(values)} pruned tensors keeps {sum(values) / len(values):.1%} of its entries{why}."


def _heatmap(key: str, title: str, caption: str, shares: Mapping[str, float]) -> Figure | None:
    if not shares or max(shares.values()) - min(shares.values()) < _UNIFORM:
        return None
    layers, kinds, table = by_layer(shares)
    low, high = min(shares.values()), max(shares.values())
    return Figure(
        key=key,
        title=title,
        caption=caption,
        alt=f"Densities from {low:.3f} to {high:.3f} in {len(layers)} layers and {len(kinds)} kinds of tensors.",
        x_label="layer",
        y_label="",
        layers=[Cells(kinds, layers, table, low, high)],
        wide=True,
        height=_AROUND + _ROW * len(kinds),
        legend=Legend("share of entries", [("heat-0", f"{low:.3f}"), ("heat-3", ""), ("heat-5", ""),
                                           ("heat-7", f"{high:.3f}")], "cell"),
    )  # fmt: skip


def by_layer(shares: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Return layers, kinds of tensors, and the table (kinds x layers); None where a layer lacks a kind.

    A name such as `model.layers.3.self_attn.q_proj.0.A` is layer 3, kind `q_proj A1`: the first number is the layer,
    a number behind the module is the adapter, counted from 0 in the name and from 1 in the table.
    """
    cells: dict[tuple[str, str], float] = {}
    for name, share in shares.items():
        cells[_place(name)] = share
    layers = sorted({layer for layer, _ in cells}, key=_by_number)
    kinds = list(dict.fromkeys(kind for _, kind in sorted(cells, key=lambda place: (place[1], _by_number(place[0])))))
    return layers, kinds, [[cells.get((layer, kind)) for layer in layers] for kind in kinds]


def _place(name: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?P<module>.+?)(?:\.(?P<adapter>\d+))?\.(?P<part>[AB])", name)
    module, adapter, part = (found["module"], found["adapter"], found["part"]) if found else (name, None, "")
    parts = module.split(".")
    layer = next((piece for piece in parts if piece.isdigit()), "–")
    own = f"{part}{int(adapter) + 1}" if adapter is not None else part
    return layer, f"{_kind(parts, layer)} {own}".strip()


def _kind(parts: Sequence[str], layer: str) -> str:
    """Return the module's name; two of the same name in a layer differ by what they are in (`attn.c_proj`)."""
    inside = parts[parts.index(layer) + 1 :] if layer in parts else parts
    return inside[-1] if inside[-1] not in {"c_proj", "dense", "out_proj"} else ".".join(inside[-2:])


def _by_number(layer: str) -> tuple[int, str]:
    return (int(layer) if layer.isdigit() else -1, layer)
