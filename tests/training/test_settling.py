"""How a GPU's memory settles what passes hold and which are recorded, and what a budget bounds; made up on a CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from tests.training.test_graphs import Repeats, World, assert_close

from grasp_lora.config import SpeedConfig, TrainingConfig
from grasp_lora.data import Batch
from grasp_lora.training import TrainingLoop, step, way
from grasp_lora.training.passes import most_places
from grasp_lora.training.step import TrainingPass


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Decide as on a GPU, and record there, whatever the device; returns how to say what is bound by launches."""
    monkeypatch.setattr(TrainingPass, "_on_gpu", property(lambda _: True))
    monkeypatch.setattr(step, "CudaRecorder", lambda _: Repeats())

    def bound(tokens):
        for module in (step, way):
            monkeypatch.setattr(module, "launch_bound_tokens", lambda _: tokens)

    return bound


def passes(speed=None, **training):
    """Passes over the pico examples, of 28 to 42 tokens; 34.8 in the mean."""
    world = World(**training)
    attached = replace(world.attached, speed=SpeedConfig(**(speed or {})))
    world.passes = TrainingPass(attached, world.items, TrainingConfig(**training), world.selector)
    return world


EIGHT = {"batch_size": 1, "accumulation": 8}  # 279 tokens in the mean


def test_a_large_memory_changes_nothing(on_a_gpu):
    for bound, recorded in ((10**6, True), (100, False)):
        on_a_gpu(bound)
        found = passes(**EIGHT).passes
        for _ in range(2):
            assert found.tokens == 4096
            assert (found.graphs is not None) is found.padded is recorded
            assert (found.not_recorded is None) is recorded
            found.settle(10**6)


def test_passes_that_a_small_memory_makes_short_are_recorded_in_half_of_it(on_a_gpu):
    on_a_gpu(150)
    found = passes(**EIGHT).passes
    assert found.not_recorded == way.COMPUTES
    found.settle(200)  # passes of 200 tokens compute for longer than they launch
    assert (found.tokens, found.not_recorded) == (200, way.COMPUTES)
    found.settle(140)
    assert (found.tokens, found.not_recorded) == (70, None)
    assert found.padded
    assert found.graphs._room == 70


def test_recordings_get_what_the_largest_pass_leaves_and_not_what_the_budget_does(on_a_gpu):
    on_a_gpu(10**6)
    found = passes(batch_size=1, accumulation=2).passes
    found.settle(300)
    assert (found.tokens, found.not_recorded) == (300, None)
    assert found.graphs._room == 300 - 2 * 42


def test_without_room_for_recordings_nothing_is_padded_for_them(on_a_gpu):
    on_a_gpu(10**6)
    found = passes(**EIGHT).passes
    assert found.padded
    with pytest.warns(UserWarning, match=r"no room to record training passes of 42 tokens and more") as seen:
        found.settle(60)
    assert len(seen) == 1
    assert (found.tokens, found.not_recorded) == (60, "GPU memory has no room")
    assert not found.padded
    assert found.graphs is None


def test_a_setting_is_not_lowered(on_a_gpu):
    on_a_gpu(10**6)
    for speed, tokens in (({"tokens_per_pass": 300}, 300), ({"pack_accumulation": False}, None)):
        found = passes(speed, **EIGHT).passes
        assert found.depends_on_memory
        found.settle(700)
        assert (found.tokens, found.not_recorded) == (tokens, None)


def test_a_pass_holds_no_more_than_its_budget_recorded_or_joined(on_a_gpu, monkeypatch):
    held = []

    def body(_self, batch, _weights, **_more):
        held.append(batch)
        return torch.zeros((), dtype=torch.float64)

    monkeypatch.setattr(step.PassBody, "__call__", body)
    for bound in (10**6, 1):
        on_a_gpu(bound)
        for budget in (100, 106, 173, 300):
            world = passes({"tokens_per_pass": budget}, **EIGHT)
            world.bank.values.grad = torch.zeros_like(world.bank.values)
            for items in world.passes.cut(world.items):
                world.passes(items, 8)
            assert max(batch.input_ids.numel() for batch in held) <= budget
            assert any(batch.joined is not None for batch in held) is (bound == 1)
            held.clear()


def test_once_recording_has_failed_passes_are_joined_as_if_there_were_no_graphs(on_a_gpu):
    on_a_gpu(10**6)
    world = passes(**EIGHT)
    plain = world.epoch(4)
    world.passes.record_with(Repeats(error="not permitted"), world.items)
    assert world.passes.padded
    with pytest.warns(UserWarning, match="not permitted") as seen:
        found = [world.epoch(4), world.epoch(4)]
    assert len(seen) == 1
    assert not world.passes.padded
    assert not world.passes.graphs.takes(world.items[:1])
    assert world.passes._batch(world.items[:4]).joined is not None
    for one in found:
        assert_close(one, plain)
    assert [len(chunk) for chunk in world.passes.cut(world.items)] == [12]


def test_shapes_beyond_the_most_that_are_recorded_are_not_padded_to_them(monkeypatch):
    monkeypatch.setattr(step, "_GRAPHS", 1)
    world = World()
    world.passes.record_with(Repeats(), world.items)
    one, two = world.items[:1], world.items[:2]
    assert world.passes.graphs.takes(one)
    assert world.passes.graphs.takes(two)
    world.epoch(1)
    assert len(world.passes.graphs.recorded) == 1
    assert not world.passes.graphs.takes(two)
    assert any(world.passes.graphs.takes(world.items[i : i + 1]) for i in range(len(world.items)))


@pytest.mark.parametrize(("fits", "found"), [({}, 90), ({"joined"}, 70), ({"joined", "alone"}, 1)])
def test_where_the_places_of_joined_rows_do_not_fit_one_example_is_measured_alone(fits, found, on_a_gpu, monkeypatch):
    """And where that does not fit either, passes hold what `batch_size` says."""
    seen = []

    def fitting(run, tokens, device):
        kind = "alone" if seen[-1].joined is None else "joined"
        if kind in fits:
            raise torch.OutOfMemoryError("full")
        return {"joined": 90, "alone": 70}[kind]

    on_a_gpu(1)
    world = passes(**EIGHT)
    monkeypatch.setattr(step, "fitting_tokens", fitting)
    monkeypatch.setattr(Batch, "to", lambda self, _: seen.append(self) or self)
    assert world.passes.fitting() == found
    layout = seen[0].joined
    assert (layout.count, layout.width) == (2, 42)  # as wide as the longest pass, so that the same kernels run
    assert len(layout.tokens) == 84
    assert layout.rows.tolist() == list(range(42))


def test_places_are_no_more_than_padded_rows_have_where_memory_is_not_sure_to_hold_them(on_a_gpu):
    on_a_gpu(1)
    world = passes(batch_size=2, accumulation=6)
    for memory, most in ((300, 2), (60, 1)):
        world.passes.settle(memory)
        for items in world.passes.cut(world.items):
            batch = world.passes._batch(items)
            if batch.joined is not None:
                assert batch.joined.count * batch.joined.width <= most * world.passes.tokens
    assert world.passes.tokens == 2 * 42


def test_measuring_leaves_parts_that_do_not_train_as_they_are(on_a_gpu, monkeypatch):
    on_a_gpu(1)
    world = World(**EIGHT)
    monkeypatch.setattr(TrainingPass, "fitting", lambda _: 300)
    loop = TrainingLoop(world.attached, world.items, TrainingConfig(epochs=1, **EIGHT), seed=1)
    modes = []
    world.model.train()
    world.model.model.embed_tokens.eval()
    world.model.model.register_forward_pre_hook(lambda *_: modes.append(world.model.model.embed_tokens.training))
    assert loop._measures
    loop.run()
    assert modes
    assert not any(modes)


def test_the_most_places_are_found_in_a_large_training_set():
    lengths = [17 * i % 997 + 3 for i in range(20_000)]
    training = TrainingConfig(batch_size=1, accumulation=8)
    found = most_places(training, lengths, 2048)
    few = sorted(lengths)
    slow = max(
        longest * max(1, min(8, 2 * 2048 // longest, 1 + sum(s <= 2048 - longest for s in accumulate(few[:8]))))
        for longest in few
        if longest > few[7]
    )
    assert found == slow
