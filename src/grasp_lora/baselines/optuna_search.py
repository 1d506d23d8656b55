"""Optuna over whole final runs: TPE, a Gaussian process, and TPE with successive halving; 8 trials, as the grid has.

The storage is a SQLite file in the method's folder. A trial that was interrupted goes on under its own number, and the
sampler of every trial is seeded anew from the run's seed and that number, so a resumed study is the same study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..errors import MissingExtraError
from ..rng import derive_seed
from .grid import best_dev
from .method import FinalRun, Method, MethodContext, MethodResult, register

OPTUNA = "https://arxiv.org/abs/1907.10902"
TRIALS = 8
# Random trials before the model is used; Optuna's default of 10 would make all 8 random.
STARTUP = 3
LOW, HIGH = 0.0, 0.95
# Successive halving: rungs after 2, 4 and 8 epochs.
MIN_EPOCHS, REDUCTION = 2, 2
STORAGE = "optuna.db"

Sampler = Callable[[Any, int], Any]


def _tpe(optuna: Any, seed: int) -> Any:
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)


def _gp(optuna: Any, seed: int) -> Any:
    return optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=seed)


@contextmanager
def _library() -> Iterator[Any]:
    """Give Optuna with its log kept to errors; raises `MissingExtraError` when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "baselines", "the optuna methods") from None
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)


def _optuna(context: MethodContext, *, sampler: Sampler, halving: bool = False) -> MethodResult:
    with _library() as optuna:
        storage = optuna.storages.RDBStorage(f"sqlite:///{context.bench.folder / STORAGE}")
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=MIN_EPOCHS, reduction_factor=REDUCTION)
        study = optuna.create_study(
            study_name="ratio", storage=storage, load_if_exists=True, direction="minimize",
            pruner=pruner if halving else optuna.pruners.NopPruner(),
        )  # fmt: skip
        try:
            while (trial := _next_trial(optuna, study, partial(sampler, optuna), context.config.seed)) is not None:
                _run_trial(optuna, study, trial, context)
            return _best(study, context)
        finally:
            storage.engine.dispose()


def _next_trial(optuna: Any, study: Any, sampler: Callable[[int], Any], seed: int) -> Any:
    """Return the interrupted trial, else a new one, or None when all are done."""
    trials = study.get_trials(deepcopy=False)
    for frozen in trials:
        if not frozen.state.is_finished():
            return optuna.trial.Trial(study, frozen._trial_id)
    if len(trials) >= TRIALS:
        return None
    study.sampler = sampler(derive_seed(seed, "optuna", len(trials)) % 2**32)
    trial = study.ask()
    trial.suggest_float("ratio", LOW, HIGH)
    return trial


def _run_trial(optuna: Any, study: Any, trial: Any, context: MethodContext) -> None:
    def judge(epoch: int, loss: float) -> bool:
        done = epoch + 1
        if done not in study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(loss, done)
            if trial.should_prune():
                trial.set_user_attr("halved", True)  # kept, in case the process ends before `tell`
        return bool(trial.user_attrs.get("halved"))

    final = _final(context, trial.number, trial.suggest_float("ratio", LOW, HIGH), judge)
    trial.set_user_attr("epochs", final.outcome.epochs)
    if trial.user_attrs.get("halved"):
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, best_dev(final))


def _final(context: MethodContext, number: int, ratio: float, judge: Callable[[int, float], bool]) -> FinalRun:
    return context.bench.finalize(f"trial_{number}", context.adapters, ratio, judge=judge)


def _best(study: Any, context: MethodContext) -> MethodResult:
    best = study.best_trial
    ratio = float(best.params["ratio"])
    final = _final(context, best.number, ratio, lambda _epoch, _loss: False)
    trials = [
        {
            "ratio": trial.params["ratio"], "dev_loss": trial.value, "state": trial.state.name.lower(),
            "epochs": trial.user_attrs["epochs"],
        }
        for trial in study.trials
    ]  # fmt: skip
    return MethodResult(final.bank, ratio, details={"trials": trials})


_SHARED = f"p in [{LOW:g}, {HIGH:g}], {TRIALS} final runs, {STARTUP} of them at random; the best dev loss decides"
register(
    Method(
        "optuna_tpe", "Optuna TPE", _SHARED, OPTUNA, ("train", "dev"), "all", partial(_optuna, sampler=_tpe),
        runs=True, prunes=True, extra=True,
    ),
    Method(
        "optuna_gp", "Optuna GP", _SHARED, OPTUNA, ("train", "dev"), "all", partial(_optuna, sampler=_gp),
        runs=True, prunes=True, extra=True,
    ),
    Method(
        "optuna_halving", "Optuna TPE, halving", f"{_SHARED}; half of the runs end after 2, 4 and 8 epochs", OPTUNA,
        ("train", "dev"), "all", partial(_optuna, sampler=_tpe, halving=True), runs=True, prunes=True, extra=True,
    ),
)  # fmt: skip
