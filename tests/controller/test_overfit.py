"""A search ends when training overfits the micro-dev examples, because probes would judge the overfitting then."""

from __future__ import annotations

import pytest
import torch
from tests.controller.test_session import run

from grasp_lora.controller.session import RISING


class Rising:
    """Stands in for an evaluator whose baseline falls once and then rises, by example."""

    token_passes = 0

    def __init__(self, steps: list[float], spread: float) -> None:
        self.steps, self.spread = list(steps), spread

    def candidate_losses(self, masks: list[torch.Tensor]) -> torch.Tensor:
        level = self.steps.pop(0)
        noise = torch.linspace(-1, 1, 16, dtype=torch.float64) * self.spread
        return (level + noise * (1 + level)).repeat(len(masks), 1)


def ended(levels, monkeypatch, spread=0.1, **config):
    from grasp_lora.controller import session as module

    fake = Rising(levels, spread)
    original = module.RatioSearch.__init__

    def init(self, bank, selector, probe, *rest, **named):
        original(self, bank, selector, fake, *rest, **named)

    monkeypatch.setattr(module.RatioSearch, "__init__", init)
    return run({0: -1.0, 1: -1.0, 2: -1.0, 3: -1.0, 4: -1.0}, **config)[1]


def test_a_rising_baseline_ends_the_search(monkeypatch):
    session = ended([3.0, 2.0, 2.5, 9.0, 9.0], monkeypatch)
    assert (session.stop_reason, session.rounds) == (RISING, 2)


def test_a_rise_within_the_noise_does_not(monkeypatch):
    # The examples move by up to 3 times their mean's rise, so its standard error is larger than half of it.
    session = ended([3.0, 2.0, 2.001, 2.0, 2.0], monkeypatch, spread=9.0)
    assert session.stop_reason is None


@pytest.mark.parametrize("config", [{"early_stop": False}, {"preset": "released"}])
def test_without_early_stopping_or_in_the_released_preset_it_goes_on(monkeypatch, config):
    assert ended([3.0, 2.0, 2.5, 2.6, 2.7], monkeypatch, **config).stop_reason is None
