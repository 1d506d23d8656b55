"""Draw the figures of the documentation into docs/figures, from the records in benchmarks/demo.

    python scripts/docs_figures.py

They are drawn as those of a report are, in the same colours for light and dark.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from grasp_lora.report.figures.spec import Figure, Intervals, Layer, Line, Points, Rule
from grasp_lora.report.figures.svg import HALF, draw
from grasp_lora.report.palette import DARK, LIGHT, variables
from grasp_lora.runs import read_json, write_text_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORDS, FIGURES = ROOT / "benchmarks" / "demo", ROOT / "docs" / "figures"
SHOWN = (1.1, 2.2)
"""Nats; where nearly everything is pruned the losses leave this range, and the picture would show nothing else."""
Records = Sequence[Mapping[str, Any]]


def records(kind: str) -> list[Mapping[str, Any]]:
    """Return the records of all seeds, by seed."""
    return sorted((read_json(path) for path in RECORDS.glob(f"{kind}-*.json")), key=lambda record: record["seed"])


def loss_over_ratio() -> Figure:
    """Return the demo's losses over the prune ratio, mean over seeds, with the simple rivals as levels."""
    found = records("curve")
    layers: list[Layer] = []
    for stage, split, colour, words in (
        ("before", "dev", "orange", "dev, right after merging"),
        ("after", "dev", "green", "dev, after the final run"),
        ("after", "test", "accent", "test, after the final run"),
    ):
        layers += _curve(found, stage, split, colour, words)
    for system, colour, words in (("target", "grey", "target adapter only"), ("sequential", "purple", "sequential")):
        level = fmean(record["systems"][system]["test"] for record in found)
        layers.append(Rule("y", level, colour, f"{words}, test: {level:.3f}"))
    return Figure(
        key="loss-over-ratio",
        title="Loss over the prune ratio",
        caption="",
        alt=f"Mean over {len(found)} seeds: {'; '.join(_said(layers))}.",
        x_label="prune ratio",
        y_label="loss, nats per answer token",
        layers=layers,
        height=340,
        y_range=SHOWN,
    )


def _curve(found: Records, stage: str, split: str, colour: str, words: str) -> list[Layer]:
    ratios = [row["ratio"] for row in found[0]["ratios"]]
    losses = [fmean(record["ratios"][place][stage][split] for record in found) for place in range(len(ratios))]
    tips = [f"ratio {ratio:g}, {words}: {loss:.3f}" for ratio, loss in zip(ratios, losses, strict=True)]
    return [Line(ratios, losses, colour, words), Points(ratios, losses, [colour] * len(ratios), tips)]


def _said(layers: Sequence[Layer]) -> list[str]:
    said = [tip for layer in layers if isinstance(layer, Points) for tip in layer.tips]
    return said + [layer.label for layer in layers if isinstance(layer, Rule) and layer.label]


def learned_ratios() -> Figure:
    """Return the learned ratio of each seed with its 90 % interval."""
    found = records("run")
    ratios = [record["results"]["p_star"] for record in found]
    lows, highs = zip(*(record["results"]["interval"] for record in found), strict=True)
    names = [f"seed {record['seed']}" for record in found]
    tips = [
        f"{name}: {ratio:.2f}, 90 % interval {low:.2f} to {high:.2f}"
        for name, ratio, low, high in zip(names, ratios, lows, highs, strict=True)
    ]
    return Figure(
        key="learned-ratios",
        title="Learned ratio of each seed",
        caption="",
        alt="; ".join(tips) + ".",
        x_label="prune ratio",
        y_label="",
        layers=[Intervals(names, ratios, lows, highs, ["accent"] * len(names), tips)],
        height=190,
    )


def standing_alone(figure: Figure) -> str:
    """Return a figure as a file of its own: a report's page would bring the colours."""
    style = (
        f"svg{{{variables(LIGHT)}background:var(--surface)}}"
        f"@media (prefers-color-scheme: dark){{svg{{{variables(DARK)}}}}}"
    )
    opening, inner = draw(figure, HALF).split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{inner}\n'


FIGURE: Mapping[str, Callable[[], Figure]] = {"loss-over-ratio": loss_over_ratio, "learned-ratios": learned_ratios}


def main() -> None:
    """Write every figure."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    for name, figure in FIGURE.items():
        write_text_atomic(FIGURES / f"{name}.svg", standing_alone(figure()))


if __name__ == "__main__":
    main()
