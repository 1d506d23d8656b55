"""Every diagnostic is provoked once, and stays silent on a healthy run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.controller.test_controller import step, valley
from tests.controller.test_session import run

from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Controller, Proposal, resolve
from grasp_lora.controller.diagnostics import Observations, diagnose, importance_differs
from grasp_lora.controller.slices import Slice


def codes(controller: Controller) -> set[str]:
    found = controller.diagnostics()
    assert all(d.seen and d.why and d.advice for d in found)
    return {d.code for d in found}


def probe(controller: Controller, loss: object, rounds: int, m: int = 8) -> Controller:
    """Run rounds on a loss without noise between examples."""
    rng = np.random.default_rng(0)
    for t in range(1, rounds + 1):
        samples = (controller.ask(t) or Proposal(t, tuple(rng.uniform(0, 0.9, 3)))).samples
        base = loss(controller.applied_ratio) + np.arange(m) + rng.normal(0, 1e-4, m)
        controller.tell(Proposal(t, samples), base, [loss(p) + np.arange(m) + rng.normal(0, 1e-4, m) for p in samples])
    return controller


def test_a_healthy_run_has_none_of_the_warnings() -> None:
    controller, slice_ = Controller(ControllerConfig(), 5), Slice(valley(), 5)
    for t in range(12):
        if controller.should_stop() is None:
            step(controller, slice_, t)
        controller.observe(flips=0.02, cleared=0.01, start=2.2, micro=2.0, micro_error=0.1, train=2.1, train_error=0.1)
    assert {d.code for d in controller.diagnostics() if d.severity == "warning"} == set()


def test_over_pruning_in_the_released_preset() -> None:
    controller = Controller(ControllerConfig(preset="released", policy_lr=5.0), 0)
    probe(controller, lambda p: -p, 12)
    assert controller.state.mean == pytest.approx(0.8, abs=0.02)
    assert "over_pruning" in codes(controller)


def test_stuck_at_the_lower_bound() -> None:
    controller = Controller(ControllerConfig(preset="released"), 0)
    for t in range(1, 31):
        controller.tell_rewards(Proposal(t, (0.1, 0.2, 0.3)), None, [0.5, 0.0, -0.5])
    assert controller.state.mean == 0.1
    assert "stuck_at_bound" in codes(controller)


@pytest.mark.parametrize(("best", "bound"), [(0.9, "p_max=0.5"), (0.0, "p_min=0.2")])
def test_p_star_at_a_bound(best: float, bound: str) -> None:
    controller = Controller(ControllerConfig(p_min=0.2, p_max=0.5), 0)
    probe(controller, lambda p: (p - best) ** 2, 4)
    (found,) = [d for d in controller.diagnostics() if d.code == "p_star_at_bound"]
    assert bound in found.seen


def test_candidates_that_do_not_differ() -> None:
    controller = probe(Controller(ControllerConfig(), 0), lambda _p: 1.0, 6)
    assert "candidates_alike" in codes(controller)


def test_a_group_of_one() -> None:
    controller = probe(Controller(ControllerConfig(candidates=1, early_stop=False), 0), lambda p: p**2, 2)
    (found,) = [d for d in controller.diagnostics() if d.code == "candidates_alike"]
    assert "controller.candidates" in found.advice
    assert controller.decisions[-1].state_after.mean == controller.decisions[-1].state_before.mean
    assert "candidates_alike" not in codes(probe(Controller(ControllerConfig(), 0), lambda p: p**2, 6))


def test_importance_that_differs_between_search_and_final_run() -> None:
    assert importance_differs("magnitude", "magnitude") is None
    found = importance_differs("magnitude", "activation")
    assert found is not None
    assert found.code == "importance_differs"
    assert "learned under importance magnitude and is used under activation" in found.seen
    assert "finalize.importance" in found.advice


def test_mask_thrashing_and_frequent_clearing() -> None:
    controller = probe(Controller(ControllerConfig(), 0), lambda p: p**2, 3)
    for _ in range(4):
        controller.observe(flips=0.3, cleared=0.15)
    assert not {"mask_thrashing", "optimizer_cleared"} & codes(controller)  # four commits are no habit yet
    controller.observe(flips=0.3, cleared=0.15)
    assert {"mask_thrashing", "optimizer_cleared"} <= codes(controller)


def test_commits_that_swing_are_seen_as_thrashing_by_what_they_did_to_the_masks() -> None:
    def found(commits: dict[int, float]) -> set[str]:
        _, _, script, _, _, _ = run(commits)
        seen = Observations(**{k: tuple(v) for k, v in script.seen.items()})
        return {d.code for d in diagnose(resolve(ControllerConfig()), [], None, seen)}

    swinging = {0: 0.1, 1: 0.6, 2: 0.1, 3: 0.6, 4: 0.1}
    assert found(swinging) == {"mask_thrashing", "optimizer_cleared"}
    assert found({0: 0.02, 1: 0.04, 2: 0.06, 3: 0.08, 4: 0.1}) == set()


def unlike(**seen: float | tuple[float, ...]) -> bool:
    """Whether micro-dev is called unrepresentative; its own standard error is 0.3 nats, the other's 0.4."""
    errors = {"micro_error": 0.3, "dev_error": 0.4, "train_error": 0.4}
    tuples = {k: v if isinstance(v, tuple) else (v,) for k, v in (errors | seen).items()}
    found = diagnose(resolve(ControllerConfig()), [], None, Observations(**tuples))
    assert all(d.code == "micro_dev_unrepresentative" for d in found)
    return bool(found)


def test_micro_dev_unlike_dev_by_three_standard_errors_of_the_difference() -> None:
    assert unlike(micro=4.0, dev=5.6)
    assert unlike(micro=4.0, dev=2.4)
    assert not unlike(micro=4.0, dev=5.4)  # 4.7 errors of micro-dev's mean alone
    assert not unlike(micro=4.0, dev=(8.0, 3.0))  # the loss fell from 8 to 3, and was 4 in between
    assert unlike(micro=(2.0, 8.0), dev=(5.0, 3.0))  # the last round counts
    assert not unlike(micro=4.0, dev=9.0, dev_error=())


def test_micro_dev_easier_than_the_first_training_examples() -> None:
    assert unlike(start=4.0, micro=3.0, train=5.6)
    assert not unlike(start=4.0, micro=3.0, train=5.4)
    assert not unlike(start=5.0, micro=3.0, train=5.6)  # before training micro-dev was as hard
    assert not unlike(start=4.0, micro=3.0, train=0.5)  # adapters that know the training examples by heart
    assert not unlike(micro=3.0, train=9.0)  # the release probes nothing before training
    assert not unlike(start=4.0, micro=3.0, train=(4.1, 9.0))
    assert not unlike(start=4.0, micro=3.0, train=9.0, train_error=())  # an interval of one step


def test_an_uncertain_answer_is_called_so() -> None:
    land = replace(valley(), loss=tuple(2.0 for _ in valley().p), noise_sd=0.05)
    controller, slice_ = Controller(ControllerConfig(early_stop=False), 2), Slice(land, 2)
    for t in range(4):
        step(controller, slice_, t)
    assert "p_star_uncertain" in codes(controller)


def test_unknown_observations_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown observations"):
        Controller(ControllerConfig(), 0).observe(flip=0.1)
