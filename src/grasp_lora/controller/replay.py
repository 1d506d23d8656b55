"""The controller's arithmetic over a recorded history: the samples are held fixed, nothing is drawn.

Two formats are read. JSON lines, one object per round: `{"round", "samples": [C], "baseline": [m], "candidates":
[[m], ...]}`, or `"rewards": [C]` with an optional `"baseline_loss"` where single examples were not kept. Or a JSON
list of runs, `{"seed", "config": {...}, "trace": [{"round", "samples", "rewards"}]}`, whose settings hold unless
overridden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import ControllerConfig
from ..errors import ConfigError, DataError
from .controller import Controller, Proposal

TRACE_KEYS = {
    "p_min": "p_min",
    "p_max": "p_max",
    "p_init": "p_init",
    "update_interval": "interval",
    "group_size": "candidates",
    "policy_lr": "policy_lr",
    "kl_coeff": "anchor",
    "entropy_bonus": "entropy_bonus",
    "max_delta_p": "max_step",
    "seed": "seed",
}
"""Names in recorded traces and their names here; `enable` and `microval_size` do not concern the arithmetic."""
IGNORED_TRACE_KEYS = ("enable", "microval_size")
NOTE = "samples are held fixed: this is what the rule makes of the same probes, not what it would have probed itself"


@dataclass(frozen=True)
class Recorded:
    """One recorded run: seed, its own settings (names of `ControllerConfig`) and its rounds as read."""

    seed: int
    settings: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    origin: str


def read_history(path: str | Path) -> list[Recorded]:
    """Read either format; raises `DataError` naming file, line or run, and what is wrong."""
    where = Path(path)
    try:
        text = where.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"history {where} cannot be read ({error}). Check the path.") from None
    if text.lstrip().startswith("["):
        return [_traced(run, f"{where}, run {k + 1}") for k, run in enumerate(_parsed(text, str(where)))]
    lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    rounds = [_parsed(line, f"{where}, line {k}") for k, line in lines]
    if not rounds:
        raise DataError(f"history {where} holds no round. Give a file with one JSON object per round.")
    for (k, _), row in zip(lines, rounds, strict=True):
        _check_round(row, f"{where}, line {k}")
    return [Recorded(int(rounds[0].get("seed", 0)), {}, rounds, str(where))]


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: not valid JSON ({error}). Mend the file.") from None


def _traced(run: Any, origin: str) -> Recorded:
    if not isinstance(run, dict) or not isinstance(run.get("trace"), list) or not run["trace"]:
        raise DataError(f"{origin}: needs a field 'trace' with a list of rounds. Check that it is a recorded run.")
    for k, row in enumerate(run["trace"], 1):
        _check_round(row, f"{origin}, round {k}")
    settings = {"preset": "released"}
    for key, value in run.get("config", {}).items():
        if key in TRACE_KEYS:
            settings[TRACE_KEYS[key]] = value
        elif key not in IGNORED_TRACE_KEYS:
            raise DataError(
                f"{origin}: unknown setting '{key}'. Known: {', '.join((*TRACE_KEYS, *IGNORED_TRACE_KEYS))}."
            )
    return Recorded(int(run.get("seed", settings.get("seed", 0))), settings, run["trace"], origin)


def _check_round(row: Any, origin: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{origin}: a round is one JSON object, got {type(row).__name__}.")
    for key in ("round", "samples"):
        if key not in row:
            raise DataError(f"{origin}: field '{key}' is missing.")
    if "rewards" not in row and not {"baseline", "candidates"} <= set(row):
        raise DataError(f"{origin}: needs 'baseline' and 'candidates' (per-example losses), or 'rewards'.")
    samples, told = row["samples"], row.get("candidates", row.get("rewards"))
    if not isinstance(samples, list) or not samples or not isinstance(told, list) or len(samples) != len(told):
        raise DataError(f"{origin}: every sample needs its losses or its reward (got {samples!r} and {told!r}).")


def replay(
    history: Sequence[Recorded], config: ControllerConfig | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return `{"runs": [{"seed", "preset", "rounds": [{"round", "mean", "std", "p"}], "p_star", "interval"}], "note"}`.

    Each run uses `config` (default: the defaults), then its own recorded settings, then `overrides` (names of
    `ControllerConfig`).

    Raises:
        ConfigError: settings that contradict each other.
        DataError: a round that cannot be replayed.

    """
    return {"runs": [_replay_run(run, config or ControllerConfig(), overrides or {}) for run in history], "note": NOTE}


def _replay_run(run: Recorded, config: ControllerConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**config.model_dump(), **run.settings, **overrides}
    try:
        own = ControllerConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"controller.{where}: {first['msg']}. Correct it with --set controller.{where}=VALUE."
        ) from None
    controller = Controller(own, run.seed)
    rounds = []
    held = 0.0  # the recorded run's committed mask, at which its baselines were measured
    for row in run.rounds:
        _tell(controller, row, held, run.origin)
        held = _committed(row, held)
        state = controller.state
        rounds.append({"round": int(row["round"]), "mean": state.mean, "std": state.std, "p": state.p})
    found = controller.estimate()
    interval = None if found.interval is None else list(found.interval)
    return {"seed": run.seed, "preset": own.preset, "rounds": rounds, "p_star": found.p_star, "interval": interval}


def _committed(row: Mapping[str, Any], held: float) -> float:
    if "mask_ratio" in row:
        return held if row["mask_ratio"] is None else float(row["mask_ratio"])
    rewards = row.get("rewards", [-1.0])
    best = max(range(len(rewards)), key=lambda i: float(rewards[i]))
    return float(row["samples"][best]) if rewards[best] >= 0 else held


def _tell(controller: Controller, row: Mapping[str, Any], held: float, origin: str) -> None:
    try:
        proposal = Proposal(int(row["round"]), tuple(float(x) for x in row["samples"]))
        if "candidates" in row:
            controller.tell(proposal, row["baseline"], row["candidates"], held)
        else:
            controller.tell_rewards(proposal, row.get("baseline_loss"), [float(x) for x in row["rewards"]], held)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{origin}, round {row.get('round')!r}: not numbers of one shape ({error}). Mend the file."
        ) from None
