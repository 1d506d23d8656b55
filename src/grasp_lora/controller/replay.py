"""The controller's arithmetic over a recorded history: the samples are held fixed, nothing is drawn.

Three things are read. A run folder, or its `stages/search/history.jsonl`: the settings are those of the run's
`config.yaml`. JSON lines, one object per round: `{"round", "samples": [C], "baseline": [m], "candidates":
[[m], ...]}`, or `"rewards": [C]` with an optional `"baseline_loss"` where single examples were not kept. Or a JSON
list of runs, `{"seed", "config": {...}, "trace": [{"round", "samples", "rewards"}]}`. Recorded settings hold unless
overridden.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ..config import load_config
from ..errors import ConfigError, DataError, RunError
from .axes import named_axes
from .controller import Controller, Proposal
from .overrides import controller_config, controller_overrides

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
HISTORY = Path("stages", "search", "history.jsonl")
WITHOUT_EFFECT = {
    "interval": "since the rounds are recorded ones",
    "candidates": "since the samples are recorded ones",
    "policy": "since the recorded points have their own coordinates",
}
NOTE = "samples are held fixed: this is what the rule makes of the same probes, not what it would have probed itself"


Held: TypeAlias = float | tuple[float, ...]


@dataclass(frozen=True)
class Recorded:
    """One recorded run: seed, its own settings (names of `ControllerConfig`) and its rounds as read."""

    seed: int
    settings: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    origin: str


def read_history(path: str | Path) -> list[Recorded]:
    """Read any of the formats; raises `DataError` naming file, line or run, and what is wrong."""
    given = Path(path)
    where = given / HISTORY if given.is_dir() else given
    try:
        text = where.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"history {where} cannot be read ({error}). Check the path.") from None
    if text.lstrip().startswith("["):
        runs = [_traced(run, f"{where}, run {k + 1}") for k, run in enumerate(_parsed(text, str(where)))]
        if not runs:
            raise DataError(f"history {where} holds no run. Give a file with at least one.")
        return runs
    lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    rounds = [_parsed(line, f"{where}, line {k}") for k, line in lines]
    if not rounds:
        raise DataError(f"history {where} holds no round. Give a file with one JSON object per round.")
    _check_rounds(rounds, [f"{where}, line {k}" for k, _ in lines])
    return [_own_run(where, rounds)]


def _own_run(where: Path, rounds: Sequence[Mapping[str, Any]]) -> Recorded:
    """Return a run of JSON lines, with the settings of the run folder that it lies in, if it lies in one."""
    parts = where.absolute().parts
    config = Path(*parts[: -len(HISTORY.parts)], "config.yaml")
    if parts[-len(HISTORY.parts) :] != HISTORY.parts or not config.is_file():
        return Recorded(_seed(rounds[0].get("seed", 0), str(where)), {}, rounds, str(where))
    saved = load_config(config)
    settings = saved.controller.model_dump(exclude_none=True)
    return Recorded(settings.get("seed", saved.seed), settings, rounds, str(where))


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: not valid JSON ({error}). Mend the file.") from None


def _traced(run: Any, origin: str) -> Recorded:
    if not isinstance(run, dict) or not isinstance(run.get("trace"), list) or not run["trace"]:
        raise DataError(f"{origin}: needs a field 'trace' with a list of rounds. Check that it is a recorded run.")
    if not isinstance(run.get("config", {}), dict):
        raise DataError(f"{origin}: 'config' must hold settings by name (got {run['config']!r}). Mend the file.")
    _check_rounds(run["trace"], [f"{origin}, entry {k}" for k in range(1, len(run["trace"]) + 1)])
    settings: dict[str, Any] = {"preset": "released"}
    for key, value in run.get("config", {}).items():
        if key in TRACE_KEYS:
            settings[TRACE_KEYS[key]] = value
        elif key not in IGNORED_TRACE_KEYS:
            raise DataError(
                f"{origin}: unknown setting '{key}'. Known: {', '.join((*TRACE_KEYS, *IGNORED_TRACE_KEYS))}."
            )
    return Recorded(_seed(run.get("seed", settings.get("seed", 0)), origin), settings, run["trace"], origin)


def _seed(value: Any, origin: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{origin}: 'seed' must be a whole number (got {value!r}). Mend the file.")
    return value


def _check_rounds(rows: Sequence[Any], origins: Sequence[str]) -> None:
    """Check every round by itself and that their numbers rise."""
    before = -1
    for row, origin in zip(rows, origins, strict=True):
        _check_round(row, origin)
        number = row["round"]
        if isinstance(number, bool) or not isinstance(number, int) or number <= before:
            raise DataError(f"{origin}: 'round' must be a whole number above {before} (got {number!r}). Mend the file.")
        before = number


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
    for sample in samples:
        if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
            raise DataError(f"{origin}: a sample must be a ratio between 0 and 1 (got {sample!r}). Mend the file.")


def replay_file(path: str | Path, *, preset: str | None = None, sets: Iterable[str] = ()) -> dict[str, Any]:
    """Replay a history file or run folder under its own settings, a preset and `controller.key=value` pairs.

    Raises:
        ConfigError: settings that are unknown, contradict each other or have no effect on recorded samples.
        DataError: a file that is no history, or a round that cannot be replayed.

    """
    return replay(read_history(path), controller_overrides(sets, preset, WITHOUT_EFFECT))


def replay(history: Sequence[Recorded], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return `{"runs": [{"seed", "preset", "rounds": [{"round", "mean", "std", "p"}], "p_star", "interval"}], "note"}`.

    Each run uses the defaults, then its own recorded settings, then `overrides` (names of `ControllerConfig`); of
    these `rounds` ends the replay early and `seed` is that of the bootstrap.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: a round that cannot be replayed.

    """
    return {"runs": [_replay_run(run, overrides or {}) for run in history], "note": NOTE}


def _replay_run(run: Recorded, overrides: Mapping[str, Any]) -> dict[str, Any]:
    own = controller_config(run.settings, overrides)
    seed = int(overrides.get("seed", run.seed))
    names = run.rounds[0].get("axes")
    if own.preset == "released" and names is not None:
        raise ConfigError(
            f"controller.preset: released learns a ratio only, and {run.origin} has points of {', '.join(names)}. "
            "Replay it under another preset."
        )
    controller = Controller(own, seed, axes=None if names is None else partial(named_axes, names, own))
    rounds = []
    # Where the recorded run stands, at which its baselines are measured.
    held: Held = 0.0 if names is None else controller.applied_point
    for row in run.rounds:
        held = _tell(controller, row, held, run.origin)
        state = controller.state
        rounds.append({"round": state.round, "mean": state.mean, "std": state.std, "p": state.p})
        if own.rounds is not None and state.round >= own.rounds:
            break
    found = controller.estimate()
    interval = None if found.interval is None else list(found.interval)
    best = {} if names is None else {"axes": list(names), "best": list(found.best)}
    return {"seed": seed, "preset": own.preset, "rounds": rounds, "p_star": found.p_star, "interval": interval, **best}


def _committed(row: Mapping[str, Any], held: Held) -> Held:
    """Return where the recorded run stands after a round; where it is not recorded, by the release's rule."""
    if "applied" in row:
        return tuple(float(x) for x in row["applied"])
    if "mask_ratio" in row:
        return held if row["mask_ratio"] is None else float(row["mask_ratio"])
    rewards = [float(x) for x in row.get("rewards", [-1.0])]
    best = max(range(len(rewards)), key=rewards.__getitem__)
    return float(row["samples"][best]) if rewards[best] >= 0 else held


def _tell(controller: Controller, row: Mapping[str, Any], held: Held, origin: str) -> Held:
    """Tell the controller one recorded round; returns the ratio or point that the recorded run holds after it."""
    try:
        points = row.get("points") or [(x,) for x in row["samples"]]
        proposal = Proposal.of(row["round"], [tuple(float(x) for x in point) for point in points])
        if "candidates" in row:
            controller.tell(proposal, row["baseline"], row["candidates"], held)
        else:
            controller.tell_rewards(proposal, row.get("baseline_loss"), [float(x) for x in row["rewards"]], held)
        return _committed(row, held)
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin}, round {row['round']}: not numbers of one shape ({error}). Mend the file.") from None
    except RunError as error:
        raise DataError(f"{origin}, {str(error).split('. ')[0]}. Mend the file.") from None
