"""A run folder made by hand: the real controller on a known curve, invented scores; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grasp_lora.config import ControllerConfig, build_config, to_yaml
from grasp_lora.controller import Controller
from grasp_lora.controller.axes import policy_axes
from grasp_lora.runs import EventLog, RunFolder, build_manifest, to_json

ROUNDS, STEPS, EXAMPLES, MICRO = 6, 60, 40, 8
SYSTEMS = {"zero_shot": 1.5, "target": 0.2, "sequential": 0.0, "merged": 0.1, "grasp": 0.0}
"""What is added to the losses of each system."""
MODULES = ("q_proj", "v_proj")


def settings(**over: Any) -> dict[str, Any]:
    rivals = ["zero_shot", "target", "sequential", "merged"]
    tree = {
        "seed": 7,
        "model": {"name_or_path": "/machine/models/tiny"},
        "task": {"language": "ar"},
        "data": {"target": {"test": "/machine/data/test.jsonl"}},
        "evaluate": {"rivals": rivals, "bootstrap": 200},
        "run": {"dir": "/machine/runs/one"},
    }
    return tree | over


def rows(level: float, n: int = EXAMPLES, spread: float = 0.01, seed: int = 0, **texts: Any) -> list[dict[str, Any]]:
    """Predictions whose losses differ between systems by `level` and a little noise."""
    noise = np.random.default_rng(seed).normal(0.0, spread, n)
    base = np.random.default_rng(1).uniform(1.0, 2.0, n)
    return [
        {
            "id": f"x{i}",
            "question": texts.get("question", "من أين جاء؟"),
            "references": [texts.get("gold", "في البيت الكبير")],
            "loss": float(base[i] + level + noise[i]),
            "prediction": texts.get("prediction", "في البيت"),
            "f1": 50.0,
        }
        for i in range(n)
    ]


def search_rows(seed: int = 0, best: float = 0.6, policy: str = "ratio") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History and result of the real controller on a bowl whose floor is at ratio `best` (and strength 0.7)."""
    config = ControllerConfig(early_stop=False)
    controller = Controller(config, seed, axes=lambda first: policy_axes(policy, config, first, (), (), "per_tensor"))
    names = [axis.name for axis in controller.settings.axes]
    generator = np.random.default_rng(seed)
    own = generator.normal(0.0, 0.2, MICRO)
    found = []
    for index in range(ROUNDS + 1):
        proposal = controller.ask(index)
        assert proposal is not None
        before = controller.state.vector("applied")
        floor = np.array([best, 0.7])[: len(names)]
        heights = [float(((np.asarray(point) - floor) ** 2).sum()) for point in (before, *proposal.points)]
        losses = [2.0 + height + own + generator.normal(0, 0.01, MICRO) for height in heights]
        decision = controller.tell(proposal, losses[0], losses[1:])
        after = decision.state_after
        coordinates = {
            "axes": names,
            "points": [list(point) for point in proposal.points],
            "held": before.tolist(),
            "means": after.vector("mean").tolist(),
            "stds": after.vector("std").tolist(),
            "applied": after.vector("applied").tolist(),
        }
        states = {"before": decision.state_before, "after": decision.state_after}
        found.append(
            {
                "round": index,
                "step": 10 * index,
                **{name: {"mean": s.mean, "std": s.std, "p": s.p} for name, s in states.items()},
                "samples": list(proposal.samples),
                "baseline": losses[0].tolist(),
                "candidates": [loss.tolist() for loss in losses[1:]],
                "rewards": list(decision.rewards),
                "committed": decision.committed,
                "mask_ratio": decision.mask_ratio,
                "density": 1 - after.applied,
                "pruned": 5,
                "revived": 1,
                "flipped": 0.01 * index,
                **(coordinates if len(names) > 1 else {}),
            }
        )
    estimate = controller.estimate()
    result = {
        "p_star": estimate.p_star,
        "interval": list(estimate.interval),
        "best": list(estimate.best),
        "intervals": [list(pair) for pair in estimate.intervals],
        "estimate": estimate.to_dict(),
        "rounds": ROUNDS,
        "evaluations": estimate.evaluations,
        "probe_tokens": 1000,
        "stop_reason": None,
        "diagnostics": [
            {"code": "mask_thrashing", "severity": "warning", "seen": "commits flipped much", "why": "it shakes",
             "advice": "lower controller.max_step"}
        ],
        "outcome": outcome(),
    }  # fmt: skip
    return found, result


def outcome(**over: Any) -> dict[str, Any]:
    return {
        "steps": STEPS, "epochs": 3, "best_epoch": 1, "dev_losses": [2.0, 1.5, 1.6], "train_losses": [2.0, 1.0, 0.5],
        "stopped_early": False, "trained_tokens": 5000, "dev_tokens": 500, **over,
    }  # fmt: skip


def densities(share: float = 0.4, varied: bool = False) -> dict[str, float]:
    return {
        f"model.layers.{layer}.self_attn.{module}.{adapter}.{part}": share + (0.05 * layer if varied else 0.0)
        for layer in range(3)
        for module in MODULES
        for adapter in range(2)
        for part in "AB"
    }


def score(name: str, values: Sequence[float]) -> dict[str, Any]:
    mean = float(np.mean(values))
    return {"name": name, "value": mean, "n": len(values), "interval": [mean - 0.05, mean + 0.05],
            "signature": f"{name}|version:1", "available": True, "reason": None}  # fmt: skip


def write_lines(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(to_json(row) + "\n" for row in found), encoding="utf-8")


def write_stage(run: RunFolder, name: str, result: Mapping[str, Any] | None, events: bool = True) -> Path:
    """A stage with a log of steps and epochs; without a result it is not done."""
    stage = run.stage(name)
    (stage.path / "made_from.json").write_text("{}")
    if events:
        with EventLog(stage.path / "events.jsonl") as log:
            log.write("start", {"steps": STEPS})
            for step in range(1, STEPS + 1):
                log.write("step", {"step": step, "epoch": (step - 1) // 20, "loss": 3.0 / step, "lr": 0.1})
                if step % 20 == 0:
                    log.write("epoch", {"epoch": step // 20 - 1, "train_loss": 1.0, "dev_loss": 1.0 + step / 100})
    if result is not None:
        stage.finish(result)
    return stage.path


def write_system(run: RunFolder, name: str, found: Sequence[Mapping[str, Any]]) -> None:
    path = write_stage(run, f"evaluate_{name}", None, events=False)
    write_lines(path / "predictions.jsonl", found)
    scores = [score("loss", [row["loss"] for row in found]), score("f1", [row["f1"] for row in found])]
    run.stage(f"evaluate_{name}").finish({"scores": scores, "examples": len(found)})


def write_run(
    path: Path,
    systems: Mapping[str, float] = SYSTEMS,
    *,
    finished: bool = True,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    varied: bool = False,
    policy: str = "ratio",
    **texts: Any,
) -> Path:
    """A whole finished run; `systems` maps names to what is added to their losses."""
    resolved = build_config(config or settings())
    with RunFolder.create(path, to_yaml(resolved)) as run:
        run.write_manifest(build_manifest(resolved, {"model": "/machine/models/tiny"}, ["grasp-lora", "run"]))
        write_stage(run, "source_adapter", {"outcome": outcome()})
        history, result = search_rows(seed, policy=policy)
        stage = write_stage(run, "search", result)
        with EventLog(stage / "history.jsonl") as log:
            for row in history:
                log.write("round", row, {"probing_s": 0.5})
        final = {"ratio": result["p_star"], "density": 0.4, "densities": densities(varied=varied), "flips": []}
        write_stage(run, "finalize", {**final, "outcome": outcome()})
        for number, (name, level) in enumerate(systems.items()):
            write_system(run, name, rows(level, seed=number, **texts))
        summed = {f"model.layers.{layer}.self_attn.{module}.{part}": 0.5 + 0.1 * layer
                  for layer in range(3) for module in MODULES for part in "AB"}  # fmt: skip
        exported = {"adapter": "export/adapter", "density_after_summing": 0.6, "densities_after_summing": summed}
        write_stage(run, "export", exported, events=False)
        if finished:
            run.write_results({"p_star": result["p_star"]})
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
