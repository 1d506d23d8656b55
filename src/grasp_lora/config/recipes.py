"""Recipes: settings that belong together, laid under whatever the user sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Recipe = Literal["paper", "recommended"]


TRAINED_EPOCHS = 10
"""Epochs of a search that trains: the release's."""


def _paper(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long a search trains: not at all, unless the preset is the release's or its adapter is to be kept.

    What is probed while the merge is trained says how a trained merge bears pruning, not what a final run makes of a
    pruned one: on real tasks it names ratios that are too small (docs/controller.md, section 10).
    """
    released = (tree.get("controller") or {}).get("preset") == "released"
    kept = (tree.get("finalize") or {}).get("adapter") == "reuse"
    return {"search": {"epochs": TRAINED_EPOCHS if released or kept else 0}}


def _recommended(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that measured best (docs/results.md): average what was trained on the target twice.

    The source adapter is fine-tuned on the target data and averaged with the target adapter; the ratio is learned on
    that merge as it is, and pruning and the final run are kept only where dev says that they helped.
    """
    given: Any = tree.get("adapters") or {}
    count = 2 + len(given.get("others") or ())
    return {
        "adapters": {"continue_source": True},
        "merge": {"rule": "sum_deltas", "weights": [1 / count] * count},
        "controller": {"policy": "ratio"},
        "search": {"epochs": 0},
        "train_target": {"patience": 2},
        "finalize": {"keep_start": True, "patience": 2},
        "evaluate": {"rivals": ["zero_shot", "source", "target", "sequential"]},  # trained anyway
    }


RECIPES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"paper": _paper, "recommended": _recommended}


def recipe_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the recipe that `tree` names sets, given the rest of `tree`; nothing for a name that is none."""
    make = RECIPES.get(str(tree.get("recipe", "paper")))
    try:
        return {} if make is None else make(tree)
    except (AttributeError, TypeError):  # a section that is no mapping: validation says so
        return {}
