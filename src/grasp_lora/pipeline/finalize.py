"""The final run: untouched merged adapters on the frozen backbone, pruned at one ratio and fine-tuned there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.inject import Injection
from ..adapters.masks import prune_count
from ..adapters.peft_load import AdapterFactors
from ..adapters.point import MergePoint
from ..config import FinalizeConfig, PruneConfig, Scope
from ..errors import ConfigError
from ..probing import Evaluator
from ..training import Callback, FixedRatio, MaskSelector, Outcome, TrainingLoop
from ..training.setup import Setup
from ..training.state import BEFORE
from .stageio import StageIO

AS_IT_CAME = MergePoint(0.0)


@dataclass(frozen=True)
class FinalResult:
    """The fine-tuned, pruned merge. `density` is counted on the tensors; `flips` is the share flipped per update.

    `probe_tokens` went forward for the first importance statistics and for `plain_dev_loss`, the dev loss of the merge
    as it came, where dev may choose that too (`finalize.keep_start`). `point` is where the merge that is kept stands.
    """

    bank: AdapterBank
    point: MergePoint
    density: float
    flips: tuple[float, ...]
    outcome: Outcome
    probe_tokens: int = 0
    plain_dev_loss: float | None = None

    @property
    def ratio(self) -> float:
        """Return the prune ratio of the point."""
        return self.point.ratio


def check_ratio(ratio: float) -> float:
    """Return `ratio` when it lies in [0, 1]; raises `ConfigError` otherwise."""
    if not 0.0 <= ratio <= 1.0:
        hint = f" Did you mean {ratio / 100:g}?" if 1.0 < ratio <= 100.0 else ""
        raise ConfigError(f"ratio: a prune ratio must lie between 0 and 1 (got {ratio:g}).{hint}")
    return ratio


def as_point(where: float | MergePoint) -> MergePoint:
    """Return a point for a ratio, and a point as it is; raises `ConfigError` for a ratio outside [0, 1]."""
    if not isinstance(where, (MergePoint, Real)):
        raise ConfigError(f"ratio: must be a number between 0 and 1, or a MergePoint, got {type(where).__name__}.")
    point = where if isinstance(where, MergePoint) else MergePoint(float(where))
    for ratio in (point.ratio, *point.ratios.values()):
        check_ratio(ratio)
    return point


def finalize(
    setup: Setup,
    adapters: Sequence[AdapterFactors],
    where: float | MergePoint,
    io: StageIO,
    training: FinalizeConfig | None = None,
) -> FinalResult:
    """Prune the merge of `adapters` at a ratio or a point and fine-tune it, dev picking the epoch.

    Source: algorithm.md, section 4. Without dev data the last epoch is kept. With `finalize.keep_start` dev may choose
    the merge before any training too, as it came or pruned. Raises `ConfigError` for a ratio outside [0, 1].
    """
    point = as_point(where)
    config, settings = setup.config, training or setup.config.finalize
    bank = setup.bank(adapters)
    batch_size = settings.eval_batch_size
    with Injection(setup.base.model, bank.modules) as injection:
        attached = setup.attach(injection, bank)
        dev = setup.evaluator(attached, "dev", batch_size=batch_size) if setup.has("dev") else None
        plain = _plain(bank, dev) if settings.keep_start and dev is not None else None
        bank.stand_at(point)
        callbacks: list[Callback] = []
        selector = None
        if _prunes(bank, point, config.prune.scope):
            prune = config.prune.model_copy(update={"importance": settings.importance or config.prune.importance})
            probe = setup.evaluator(attached, "micro_dev", batch_size=batch_size) if _needs_probe(prune) else None
            selector = MaskSelector(bank, injection, prune, probe)
            callbacks = [FixedRatio(bank, selector, point, dynamic=settings.mask == "dynamic")]
        loop = TrainingLoop(
            attached, setup.items("train"), settings,
            seed=config.seed, dev=dev, callbacks=callbacks,
            selector=selector if settings.mask == "dynamic" else None, plumbing=io.plumbing(),
        )  # fmt: skip
        loop.judging_start = settings.keep_start
        with io.running(loop, settings.epochs * loop.updates_per_epoch):
            outcome = loop.run()
    flips = tuple(callbacks[0].flips) if callbacks and isinstance(callbacks[0], FixedRatio) else ()
    tokens = selector.probe_tokens if selector is not None else 0
    if plain is None:
        return FinalResult(bank, point, bank.density(), flips, outcome, tokens)
    trained = min(loss for loss in (outcome.start_dev_loss, *outcome.dev_losses) if loss is not None)
    if plain.loss <= trained:
        bank.load_state(plain.state)
        point, outcome = AS_IT_CAME, replace(outcome, best_epoch=BEFORE)
    return FinalResult(bank, point, bank.density(), flips, outcome, tokens + plain.tokens, plain.loss)


@dataclass(frozen=True)
class _Plain:
    """The merge as it came: its values, its dev loss, and the tokens that were needed to know it."""

    state: dict[str, Tensor]
    loss: float
    tokens: int


def _plain(bank: AdapterBank, dev: Evaluator) -> _Plain:
    before = dev.token_passes
    loss = float(dev.losses().mean())
    return _Plain(bank.state(), loss, dev.token_passes - before)


def _prunes(bank: AdapterBank, point: MergePoint, scope: Scope) -> bool:
    ratios, sizes = bank.ratios(point, scope), bank.segments(scope)
    own = (ratios,) * len(sizes) if isinstance(ratios, float) else ratios
    return any(prune_count(p, size) for p, size in zip(own, sizes, strict=True))


def _needs_probe(prune: PruneConfig) -> bool:
    """Magnitude needs no micro-dev pass, so the final run works without micro-dev data then."""
    return prune.importance != "magnitude"
