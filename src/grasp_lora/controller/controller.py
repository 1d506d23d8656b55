"""The controller a training loop talks to: ask for ratios, tell their losses, get a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import ControllerConfig
from ..errors import RunError
from ..rng import numpy_generator
from . import policy
from .answer import Estimate, Glimpse
from .axes import RATIO, Axis
from .diagnostics import Diagnostic, Observations, diagnose
from .estimate import EstimateSettings, estimate, glimpse
from .history import History
from .noise import noise_of_rewards
from .policy import Point, PolicyState
from .presets import Settings, resolve
from .rounds import Decision, Proposal, checked_losses
from .schedule import AHEAD, GROWTH, STRIDE, after_round, spent

__all__ = ["Controller", "Decision", "Proposal"]

Vector = NDArray[np.float64]


class Controller:
    """Learns one prune ratio (or point) from losses alone; knows no model and draws from its own generator.

    `steps_total`, the optimizer steps of the whole run, serves only to report what stopping early saved. `axes` makes
    all axes of a point from the ratio's own (see `policy_axes`); without it the ratio is the only one. Raises
    `ConfigError` for bounds that contradict each other.
    """

    def __init__(
        self,
        config: ControllerConfig,
        seed: int,
        *,
        steps_total: int | None = None,
        axes: Callable[[Axis], tuple[Axis, ...]] | None = None,
    ) -> None:
        self.settings: Settings = resolve(config, axes)
        self.config = config
        self.steps_total = steps_total
        self.state = policy.initial_state(self.settings)
        self.history = History()
        self.observations = Observations()
        self._seed = seed
        self._rng = numpy_generator(seed, "controller")
        self._logged: list[tuple[float, float]] = []
        self._decisions: list[Decision] = []
        self._latest: Glimpse | None = None
        self._answer: Estimate | None = None
        self._stop: str | None = None
        self._next_round = 0

    @property
    def released(self) -> bool:
        """Return whether the release's arithmetic is in use."""
        return self.settings.preset == "released"

    @property
    def applied_ratio(self) -> float:
        """Return the ratio of the committed mask, at which the next baseline is to be measured; 0 before a commit."""
        return self.state.applied

    @property
    def applied_point(self) -> tuple[float, ...]:
        """Return where the next baseline is to be measured, one coordinate per axis."""
        return tuple(float(x) for x in self.state.vector("applied"))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Return every decision so far, oldest first."""
        return tuple(self._decisions)

    @property
    def budget(self) -> int | None:
        """Return the evaluations that all rounds would take, None where the number of rounds is not known."""
        known = [] if self.steps_total is None else [self.steps_total // self.config.interval]
        rounds = min([*known, *([] if self.config.rounds is None else [self.config.rounds])], default=None)
        return None if rounds is None else rounds * (self.settings.candidates + 1)

    def ask(self, round_index: int) -> Proposal | None:
        """Return the ratios to probe in this round, or None to probe nothing; round 0 is before any training."""
        if self.released:
            if round_index == 0:
                return None
            return Proposal(round_index, policy.released_samples(self.state, self.settings, self._rng))
        if round_index == 0:
            return Proposal.of(0, policy.first_look(self.settings, self._rng))
        if self._stop is not None or round_index < self._next_round:
            return None
        return Proposal.of(round_index, self._candidates())

    def _candidates(self) -> tuple[Point, ...]:
        """Draw C points from the policy; from the third on, the last comes from the estimate's posterior instead.

        Thompson sampling: a posterior draw's minimum, so that a second valley is visited as often as it may be best.
        """
        count = self.settings.candidates
        explorers = 1 if count >= 3 and self._latest is not None else 0
        samples = policy.truncated_samples(self.state, self.settings, self._rng, count - explorers)
        if explorers and self._latest is not None:
            samples += policy.as_points(self._rng.choice(self._latest.minima, size=1))
        return samples

    def tell(
        self,
        proposal: Proposal,
        baseline: ArrayLike,
        candidates: ArrayLike,
        baseline_ratio: float | Sequence[float] | None = None,
    ) -> Decision:
        """Take per-example losses, baseline (m,) and candidates (C, m) in nats; update the policy and commit.

        `baseline_ratio` is the ratio (or point) at which the baseline was measured, if that is not `applied_point`.

        Raises:
            RunError: shapes that do not fit, or a loss that is not finite.

        """
        base, trials = checked_losses(proposal, baseline, candidates)
        noise = noise_of_rewards(base, trials)
        self._remember(proposal, base, trials, baseline_ratio)
        rewards = base.mean() - trials.mean(axis=1)
        return self._update(proposal, float(base.mean()), rewards, noise)

    def tell_rewards(
        self,
        proposal: Proposal,
        baseline_loss: float | None,
        rewards: Sequence[float],
        baseline_ratio: float | Sequence[float] | None = None,
    ) -> Decision:
        """Take group means only (a history without per-example losses); `baseline_loss` may be unknown.

        Raises:
            RunError: a number of rewards that does not fit, or one that is not finite.

        """
        gains = np.asarray(rewards, dtype=float)
        base = 0.0 if baseline_loss is None else float(baseline_loss)
        column = np.array([base])
        checked_losses(proposal, column, base - gains[:, None])
        self._remember(proposal, column, base - gains[:, None], baseline_ratio)
        return self._update(proposal, baseline_loss, gains, 0.0)

    def _remember(
        self, proposal: Proposal, base: Vector, trials: Vector, where: float | Sequence[float] | None
    ) -> None:
        self.history.add(proposal.round, self.applied_point if where is None else where, base)
        for point, losses in zip(proposal.points, trials, strict=True):
            self.history.add(proposal.round, point, losses)

    def _update(self, proposal: Proposal, baseline: float | None, rewards: Vector, noise: float) -> Decision:
        before = self.state
        gains = tuple(float(r) for r in rewards)
        if self.released:
            after = policy.released_update(before, proposal.samples, gains, self.settings, proposal.round)
            committed = max(gains) >= 0
            self._logged += list(zip(proposal.samples, gains, strict=True))
            if baseline is not None:
                self._logged.append((after.p, -baseline))
        else:
            after, committed = self._default_round(proposal, rewards, noise)
        self.state = after
        decision = Decision(gains, committed, after.applied if committed else None, after.p, before, after)
        self._decisions.append(decision)
        if not self.released:
            self._review()
        return decision

    def _default_round(self, proposal: Proposal, rewards: Vector, noise: float) -> tuple[PolicyState, bool]:
        points = np.asarray(proposal.points)
        scaled = policy.advantages(rewards, noise)
        after = policy.default_update(self.state, points, scaled, self.settings, proposal.round)
        order = np.lexsort((*points.T[::-1], -rewards))
        gains = bool(rewards[order[0]] >= noise)  # a gain within the noise would only shuffle the mask
        if proposal.round == 0 and len(self.settings.axes) > 1:
            return self._warm_start(after, commit=gains)
        return (policy.default_commit(after, points[order[0]], self.settings) if gains else after), gains

    def _warm_start(self, after: PolicyState, *, commit: bool) -> tuple[PolicyState, bool]:
        """Begin where the first look points to, with the spread of what it leaves open.

        Several axes are too far to walk in bounded steps, and before any training a jump shakes nothing.
        """
        self._latest = found = self._glimpse()
        best, std = np.asarray(found.best), policy.bounded_std(found.minima.std(axis=0), self.settings)
        p, applied = after.vector("p"), after.vector("applied")
        state = PolicyState.build(after.round, best, std, p, applied)
        return (policy.committed_at(state, best, self.settings) if commit else state), commit

    def estimate(self) -> Estimate:
        """Return p_star from everything told so far; the same call gives the same answer, however often it is made.

        Raises:
            RunError: nothing has been told yet.

        """
        if not len(self.history):
            raise RunError(
                "the controller has no evaluation yet, so there is no ratio to name. Run at least one round."
            )
        if self._answer is None or self._answer.evaluations != len(self.history):
            # Never `_latest`: looking at the answer must not change what is probed next.
            self._answer = estimate(self.history.as_arrays(), *self._assumptions())
        if self.released:
            return self._answer.with_p_star(max(self._logged, key=lambda pair: pair[1])[0])
        return self._answer

    def _glimpse(self) -> Glimpse:
        settings, rng = self._assumptions()
        if not self.settings.early_stop:
            settings = replace(settings, next_points=())  # nobody asks what more probes are worth
        return glimpse(self.history.as_arrays(), settings, rng)

    def _assumptions(self) -> tuple[EstimateSettings, np.random.Generator]:
        rng = numpy_generator(self._seed, "estimate", len(self.history))
        settings = EstimateSettings(
            self.settings.bounds,
            plateau=self._plateau,
            next_round=self.state.round + 2 * STRIDE,
            next_points=policy.truncated_samples(self.state, self.settings, rng, AHEAD),
        )
        return settings, rng

    @property
    def _plateau(self) -> float:
        """A sparser end is one direction where there is one ratio; where there are several it is not defined."""
        return self.settings.plateau if sum(axis.kind == RATIO for axis in self.settings.axes) == 1 else 0.0

    def should_stop(self) -> str | None:
        """Return why probing can end now, or None to go on."""
        return self._stop

    def _review(self) -> None:
        """Fit again once the history has grown by a fifth, then decide whether to stop and when to probe next."""
        known = 0 if self._latest is None else self._latest.evaluations
        if len(self.history) >= GROWTH * known:
            self._latest = self._glimpse()
        if not self.settings.early_stop or self._latest is None:
            return
        self._next_round, enough = after_round(self.state.round, self._latest, self.settings.tolerance)
        if enough is not None:
            self._stop = f"{enough}; {spent(len(self.history), self.budget)}"

    def observe(self, **seen: float | None) -> None:
        """Note what only the training loop knows: shares of entries, losses and their errors (`Observations`)."""
        self.observations = self.observations.add(**seen)

    def diagnostics(self) -> list[Diagnostic]:
        """Return what looks wrong so far, each with what was seen, why it matters and what to change."""
        answer = self.estimate() if len(self.history) else None
        return diagnose(self.settings, self._decisions, answer, self.observations)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue identically, as JSON types."""
        return {
            "version": 1,
            "state": asdict(self.state),
            "history": self.history.to_dict(),
            "logged": [list(pair) for pair in self._logged],
            "decisions": [asdict(d) for d in self._decisions],
            "observations": asdict(self.observations),
            "latest": None if self._latest is None else self._latest.to_dict(),
            "stop": self._stop,
            "next_round": self._next_round,
            "seed": self._seed,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raises `RunError` when the saved state is of another version."""
        if saved.get("version") != 1:
            raise RunError(
                f"controller state: version 1 is read here, got {saved.get('version')!r}. Start the run anew."
            )
        self.state = PolicyState.from_dict(saved["state"])
        self.history = History.from_dict(saved["history"])
        self._logged = [(float(p), float(v)) for p, v in saved["logged"]]
        self._decisions = [Decision.from_dict(d) for d in saved["decisions"]]
        self.observations = Observations.from_dict(saved["observations"])
        self._latest = None if saved["latest"] is None else Glimpse.from_dict(saved["latest"])
        self._answer = None
        self._stop = saved["stop"]
        self._next_round = int(saved["next_round"])
        self._seed = int(saved["seed"])
        self._rng.bit_generator.state = saved["rng"]
