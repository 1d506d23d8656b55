"""How many updates and rounds a run holds, and whether those that are timed are enough to say what each costs."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import Config, TrainingConfig
from ...errors import ConfigError
from .stages import WARM_UP

# Epochs that are run in place of all of them: as many again as those that warm up.
QUICK_EPOCHS = {name: 2 * warm for name, warm in WARM_UP.items()}


@dataclass(frozen=True)
class Sizes:
    """How much of everything a whole run holds: updates of the search, rounds, updates of the final run."""

    steps: int
    rounds: int
    updates: int


def updates_of(training: TrainingConfig, examples: int) -> int:
    """Return the updates of one epoch over so many examples."""
    return -(-examples // (training.batch_size * training.accumulation))


def sizes_of(config: Config, examples: int) -> Sizes:
    """Return the sizes of a run over so many training examples; a search ends with `controller.rounds`."""
    steps = _steps(config, examples, config.search.epochs)
    updates = config.finalize.epochs * updates_of(config.finalize, examples)
    return Sizes(steps, steps // config.controller.interval, updates)


def _steps(config: Config, examples: int, epochs: int) -> int:
    steps, most = epochs * updates_of(config.search, examples), config.controller.rounds
    return steps if most is None else min(steps, most * config.controller.interval)


def search_epochs(config: Config, examples: int, epochs: int) -> list[tuple[int, int]]:
    """Return the updates without a round, and those with one, of every epoch that a search of so many gets to."""
    each, last, interval = (
        updates_of(config.search, examples),
        _steps(config, examples, epochs),
        config.controller.interval,
    )
    pairs = []
    for start in range(0, last, each):
        end = min(start + each, last)
        rounds = end // interval - start // interval
        pairs.append((end - start - rounds, rounds))
    return pairs


def check_timed(config: Config, examples: int, *, quick: bool, rounds: bool = True, what: str = "") -> None:
    """Raise `ConfigError` where a search leaves no update, or no round, to time behind those that warm up.

    `what` names the part that is checked, if not the workload as a whole; `rounds` says whether rounds are wanted; if
    not, they are still needed where the epochs that warm up have some.
    """
    epochs = QUICK_EPOCHS["search"] if quick else config.search.epochs
    pairs, warm = search_epochs(config, examples, epochs), WARM_UP["search"]
    first, later = (pairs[:warm], pairs[warm:]) if len(pairs) > warm else ([], pairs)
    plain, probed = (sum(pair[i] for pair in later) for i in (0, 1))
    wanted = rounds or any(pair[1] for pair in first)
    if plain and (probed or not wanted):
        return
    quick = quick and not what  # which are always quick
    most = "" if config.controller.rounds is None else f", {config.controller.rounds} at most"
    raise ConfigError(
        f"{what}controller.interval: {epochs} epochs of {updates_of(config.search, examples)} updates with a round "
        f"every {config.controller.interval}{most} leave {plain} updates without a round and {probed} rounds to time "
        "behind those that warm up; bench needs one of each. Change controller.interval, controller.rounds, "
        "search.batch_size, search.accumulation or search.epochs" + (", or leave --quick out." if quick else ".")
    )
