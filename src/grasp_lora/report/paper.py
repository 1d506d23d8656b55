"""The paper's numbers (arXiv 2601.06702, tables 1 and 2), shown beside ours only where the setting is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The setting of the paper: model, rank and alpha, and test sets of 100 examples.
_MODEL, _LORA, _EXAMPLES = "Meta-Llama-3-8B-Instruct", {"r": 8, "alpha": 32.0}, 100

_METRICS = {"summarization": ("bleu", "rougeL"), "qa": ("em", "f1")}
# BERTScore has a rescaling baseline for zh and none for ar, which is why the paper's two levels differ so.
_BERTSCORE = {"ar": "bertscore_raw", "zh": "bertscore_rescaled"}
# Our method -> the paper's scores: BERT-F1, then those of _METRICS.
_NUMBERS: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {
    ("summarization", "ar"): {
        "zero_shot": (69.08, 2.05, 10.60), "target": (74.33, 4.46, 18.17), "ties": (69.59, 2.19, 11.99),
        "lorahub": (73.76, 5.10, 16.85), "grid": (74.96, 6.18, 20.19), "grasp_released": (75.84, 7.93, 22.32),
    },
    ("qa", "ar"): {
        "zero_shot": (65.71, 0.00, 11.00), "target": (84.07, 29.00, 43.84), "ties": (67.19, 2.00, 13.28),
        "lorahub": (83.46, 29.00, 42.79), "grid": (85.62, 38.33, 50.29), "grasp_released": (86.18, 41.00, 52.51),
    },
    ("summarization", "zh"): {
        "zero_shot": (26.48, 9.39, 20.87), "target": (31.09, 13.73, 28.15), "ties": (26.23, 9.37, 21.30),
        "lorahub": (26.42, 10.35, 24.16), "grid": (32.00, 14.81, 29.50), "grasp_released": (33.62, 16.54, 30.95),
    },
    ("qa", "zh"): {
        "zero_shot": (7.12, 0.00, 6.95), "target": (64.15, 42.00, 47.17), "ties": (11.28, 0.00, 13.51),
        "lorahub": (65.11, 44.00, 48.10), "grid": (69.30, 46.50, 50.93), "grasp_released": (71.28, 48.00, 51.60),
    },
}  # fmt: skip


def same_setting(records: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Return whether a cell is one of the paper's: its model, adapters, task, language and number of test examples."""
    return (
        str(records["model"]).rpartition("/")[2] == _MODEL
        and dict(records["lora"]) == _LORA
        and (cell["task"], cell["language"]) in _NUMBERS
        and cell["examples"] == _EXAMPLES
    )


def paper_table(records: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    """Return the paper's scores and ours side by side, or nothing where the setting differs."""
    if not same_setting(records, cell):
        return []
    task = cell["task"]
    metrics = (_BERTSCORE[cell["language"]], *_METRICS[task])
    lines = [f"| paper / here | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    rows = {row["row"]: row for row in cell["rows"]}
    for name, numbers in _NUMBERS[task, cell["language"]].items():
        if name in rows:
            ours = [rows[name]["scores"].get(metric) for metric in metrics]
            shown = [f"{theirs:.2f} / {'-' if our is None else format(our['mean'], '.2f')}"
                     for theirs, our in zip(numbers, ours, strict=True)]  # fmt: skip
            lines.append(f"| {rows[name]['title']} | {' | '.join(shown)} |")
    return ["\n".join(lines)]
