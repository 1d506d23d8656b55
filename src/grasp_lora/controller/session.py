"""The controller attached to a training loop: rounds of probes, commits, and the record of everything measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.masks import CommitReport, Ranking
from ..config import ControllerConfig
from ..probing import Evaluator
from ..training import MaskSelector, commit_mask
from .axes import Axis, Vector, merge_point, ratio_axis
from .controller import Controller, Decision, Proposal

Record = Callable[[dict[str, Any]], None]
RATIO_ONLY = ratio_axis(0.0, 1.0, 0.0)
OVERFIT = 2.0
RISING = "the micro-dev loss rose above its lowest: probes judge an overfitted merge then, and that round is not used"


class RatioSearch:
    """A training callback that runs the controller: it probes every `interval` steps and prunes at what it commits.

    `axes` say what the coordinates of the controller's points mean. With `hold_from`, the run does not end when the
    answer stands: the answer is committed then, at the latest after step `hold_from`, and training goes on there. With
    `at_once` set, nothing is trained: so many rounds follow the first at the start, unless the answer stands before.

    In `preset: released` the ranking of the first round is kept for ever and gradients of pruned entries are left
    alone (algorithm.md, points 6 and 7); otherwise the ranking is made anew in each round and gradients are masked.
    """

    def __init__(
        self,
        bank: AdapterBank,
        selector: MaskSelector,
        probe: Evaluator,
        controller: Controller,
        config: ControllerConfig,
        record: Record = lambda _row: None,
        *,
        axes: Sequence[Axis] = (RATIO_ONLY,),
        hold_from: int | None = None,
    ) -> None:
        self._axes, self._hold_from, self.held = tuple(axes), hold_from, False
        self.at_once = 0
        self._known: tuple[tuple[float, ...], Tensor] | None = None  # the last baseline and where it was measured
        self._bank, self._selector, self._probe = bank, selector, probe
        self.controller, self._config, self._record = controller, config, record
        self._released = config.preset == "released"
        self._optimizer: torch.optim.Optimizer | None = None
        self._first_ranking: Ranking | None = None
        self._recent: list[float | Tensor] = []  # training losses since the last round
        self._lowest: list[float] | None = None  # per-example losses of the best baseline so far
        self._rises = False
        self.rounds = 0
        self.evaluations = 0
        self.stop_reason: str | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the optimizer, whose moments a commit clears."""
        self._optimizer = optimizer

    def start(self) -> None:
        """Probe right after the merge, if the preset does so: the landscape is deepest there."""
        self._round(0, 0)
        for index in range(1, self.at_once + 1):
            self.rounds = index
            self._round(index, 0)
            done = f"all {index} rounds are done" if index == self.at_once else None
            if self._answer(self.controller.should_stop() or done) or self.held:
                return

    def after_backward(self) -> None:
        """Feed the importance statistics and keep pruned entries out of the optimizer."""
        self._selector.after_backward()
        if not self._released:
            self._bank.mask_gradient()

    def after_step(self, step: int, loss: float | Tensor | None) -> bool:
        """Hold pruned entries at zero and, every `interval` steps, run a round; True when the answer stands.

        The loss only serves the diagnostics; a loop that does not know it gives None.
        """
        self._bank.enforce()
        if loss is not None:
            self._recent.append(loss)
        if self.held:
            return False
        last = self._hold_from is not None and step >= self._hold_from
        if step % self._config.interval:
            return self._answer("half of the epochs are done") if last else False
        train = torch.tensor([float(loss) for loss in self._recent], dtype=torch.float64)
        self.controller.observe(train=float(train.mean()) if self._recent else None, train_error=_error(train))
        self._recent.clear()
        self.rounds += 1
        self._round(self.rounds, step)
        return self._answer(self._why() or ("half of the epochs are done" if last else None))

    @property
    def ended(self) -> bool:
        """Whether the run has ended with its answer; `load_state` forgets it where `controller.rounds` was raised."""
        return self.stop_reason is not None and self._hold_from is None

    def _why(self) -> str | None:
        """Return why the search ends after the rounds so far, or None."""
        if self._config.rounds is not None and self.rounds >= self._config.rounds:
            return f"all {self.rounds} rounds are done"
        return self.controller.should_stop() or (RISING if self._rises else None)

    def _answer(self, reason: str | None) -> bool:
        """End the search for a reason (None: it goes on); True when the run ends with it."""
        self.stop_reason = reason
        if reason is None or self._hold_from is None:
            return reason is not None
        self._stand(self._ranking(), self.controller.estimate().best)
        self.held = True
        return False

    def _round(self, index: int, step: int) -> None:
        proposal = self.controller.ask(index)
        if proposal is None:
            return
        clock = time.perf_counter()
        ranking = self._ranking()
        ranked = time.perf_counter()
        losses = self._losses(ranking, proposal)
        probed = time.perf_counter()
        self._rises = self._overfits(losses[0])
        if self._rises:
            return  # the search ends here, and what this round saw would only mislead the estimate
        decision = self.controller.tell(proposal, losses[0].numpy(), losses[1:].numpy())
        mean = float(losses[0].mean())
        if step:
            self.controller.observe(micro=mean, micro_error=_error(losses[0]))
        elif index == 0:
            self.controller.observe(start=mean)
        report = self._commit(ranking, decision)
        times = {
            "ranking_s": ranked - clock,
            "probing_s": probed - ranked,
            "commit_s": time.perf_counter() - probed,
        }
        row = _row(step, proposal, losses, decision, report, self._bank.density())
        self._record(row | self._coordinates(proposal, decision) | {"time": times})

    def _overfits(self, baseline: Tensor) -> bool:
        """Return whether the micro-dev loss has risen above its lowest by OVERFIT standard errors of the difference.

        From there on a smaller or sparser merge looks better because it undoes the overfitting, which the final run
        avoids by its own means: dev picks its epoch.
        """
        if self._released or not self._config.early_stop or self.at_once:
            return False
        if self._lowest is None or float(baseline.mean()) < sum(self._lowest) / len(self._lowest):
            self._lowest = baseline.tolist()
            return False
        rise = baseline - torch.tensor(self._lowest, dtype=baseline.dtype)
        return len(rise) > 1 and float(rise.mean()) > OVERFIT * float(rise.std()) / len(rise) ** 0.5

    def _losses(self, ranking: Ranking, proposal: Proposal) -> Tensor:
        """Return the losses (1 + C, m) of the committed state and of every candidate, in one pass.

        Where nothing is trained, the committed state is not measured twice.
        """
        if not self.at_once:
            return self._measured(ranking, proposal, with_baseline=True)
        here = self.controller.applied_point
        if self._known is not None and self._known[0] == here:
            return torch.cat([self._known[1], self._measured(ranking, proposal, with_baseline=False)])
        losses = self._measured(ranking, proposal, with_baseline=True)
        self._known = (here, losses[:1])
        return losses

    def _measured(self, ranking: Ranking, proposal: Proposal, *, with_baseline: bool) -> Tensor:
        points = [merge_point(self._axes, point) for point in proposal.points]
        masks = [self._selector.kept(ranking, point) for point in points]
        if with_baseline:
            masks, points = [self._bank.kept, *masks], [self._bank.standing(0.0), *points]
        self.evaluations += len(masks)
        if len(self._axes) == 1:
            return self._probe.candidate_losses(masks)
        dense = self._bank.dense()
        flat = torch.stack([torch.where(mask, dense, torch.zeros_like(dense)) for mask in masks])
        return self._probe.flat_losses(flat, points)

    def _coordinates(self, proposal: Proposal, decision: Decision) -> dict[str, Any]:
        """Return what a history line says of points with more than one coordinate."""
        if len(self._axes) == 1:
            return {}
        before, after = decision.state_before, decision.state_after
        return {
            "axes": [axis.name for axis in self._axes],
            "points": [list(point) for point in proposal.points],
            "held": before.vector("applied").tolist(),
            "means": after.vector("mean").tolist(),
            "stds": after.vector("std").tolist(),
            "applied": after.vector("applied").tolist(),
        }

    def _ranking(self) -> Ranking:
        if not self._released and not self.at_once:  # what is not trained ranks the same for ever
            return self._selector.ranking()
        if self._first_ranking is None:
            self._first_ranking = self._selector.ranking()
        return self._first_ranking

    def _commit(self, ranking: Ranking, decision: Decision) -> CommitReport | None:
        if decision.mask_ratio is None:
            return None
        report = self._stand(ranking, decision.state_after.vector("applied"))
        self.controller.observe(flips=report.flipped, cleared=report.pruned / self._bank.kept.numel())
        return report

    def _stand(self, ranking: Ranking, coordinates: Sequence[float] | Vector) -> CommitReport:
        """Put the merge at a point: its strengths, and its mask."""
        point = merge_point(self._axes, coordinates)
        self._bank.stand_at(point)
        return commit_mask(self._bank, self._selector.kept(ranking, point), self._optimizer)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what goes on to the bit after `load_state`."""
        tensors, selector = self._selector.state()
        if self._first_ranking is not None:
            tensors = tensors | {"ranks": self._first_ranking.ranks}
        plain = {
            "selector": selector,
            "controller": self.controller.state_dict(),
            "rounds": self.rounds,
            "evaluations": self.evaluations,
            "probe_tokens": self._probe.token_passes,
            "stop_reason": self.stop_reason,
            "held": self.held,
            "lowest": self._lowest,
            "rises": self._rises,
            "recent": [float(loss) for loss in self._recent],
            "sizes": list(self._first_ranking.sizes) if self._first_ranking else None,
        }
        return tensors, plain

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._selector.load_state(tensors, plain["selector"])
        self.controller.load_state_dict(plain["controller"])
        self.rounds, self.evaluations = int(plain["rounds"]), int(plain["evaluations"])
        self._probe.token_passes, self.stop_reason = int(plain["probe_tokens"]), plain["stop_reason"]
        self.held, self._lowest, self._rises = bool(plain["held"]), plain["lowest"], bool(plain["rises"])
        self._recent = [float(loss) for loss in plain["recent"]]
        if plain["sizes"] is not None:
            self._first_ranking = Ranking(tensors["ranks"].to(self._bank.values.device), tuple(plain["sizes"]))
        if self._hold_from is None and not self.at_once and self._why() is None:
            self.stop_reason = None  # `controller.rounds` has been raised


def _error(losses: Tensor) -> float | None:
    """Return the standard error of the mean of losses (n,), None where one alone has none."""
    return float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else None


def _row(
    step: int,
    proposal: Proposal,
    losses: Tensor,
    decision: Decision,
    report: CommitReport | None,
    density: float,
) -> dict[str, Any]:
    """Return one line of the history: what was asked, measured per example, decided and found on the tensors."""
    before, after = decision.state_before, decision.state_after
    return {
        "round": proposal.round,
        "step": step,
        "before": {"mean": before.mean, "std": before.std, "p": before.p},
        "samples": list(proposal.samples),
        "baseline": losses[0].tolist(),
        "candidates": losses[1:].tolist(),
        "rewards": list(decision.rewards),
        "committed": decision.committed,
        "mask_ratio": decision.mask_ratio,
        "after": {"mean": after.mean, "std": after.std, "p": after.p},
        "density": density,
        "pruned": report.pruned if report else 0,
        "revived": report.revived if report else 0,
        "flipped": report.flipped if report else 0.0,
    }
