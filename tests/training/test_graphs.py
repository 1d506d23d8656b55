"""Recorded passes with a recorder that works on a CPU: the same losses and gradients, and what makes them give up."""

from __future__ import annotations

import weakref

import pytest
import torch
from tests.pico import FAMILIES, pico_adapter, pico_model, pico_setup
from transformers import LlamaConfig, LlamaForCausalLM

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import PruneConfig, TrainingConfig
from grasp_lora.data import Encoded
from grasp_lora.training import MaskSelector, graphs, step
from grasp_lora.training.step import TrainingPass


class Repeats:
    """Records as CUDA does: the work is not run at first, and its result stays in one tensor."""

    def __init__(self, error: str | None = None) -> None:
        self.error, self.recorded, self.replayed = error, 0, 0

    def __call__(self, work):
        if self.error is not None:
            raise RuntimeError(self.error + "\nand more lines")
        self.recorded += 1
        result = torch.zeros((), dtype=torch.float64)

        def replay() -> None:
            self.replayed += 1
            result.copy_(work())

        return replay, result


class World:
    """A frozen model, two adapters of it, training examples of several lengths, and passes over them."""

    def __init__(self, family="llama", importance="magnitude", **training):
        self.model = pico_model(family, torch.float64).requires_grad_(False)
        work = pico_setup(self.model)
        self.items = work.items("train")
        self.bank = work.bank([pico_adapter(self.model, "en"), pico_adapter(self.model, "ar")])
        self.injection = Injection(self.model, self.bank.modules)
        self.attached = work.attach(self.injection, self.bank)
        self.selector = MaskSelector(
            self.bank, self.injection, PruneConfig(importance=importance), work.evaluator(self.attached, "micro_dev")
        )
        self.passes = TrainingPass(self.attached, self.items, TrainingConfig(**training), self.selector)

    def epoch(self, size=1):
        """The losses of passes over all examples, `size` at a time, and the gradient of their sum."""
        self.model.train()
        self.bank.values.grad = torch.zeros_like(self.bank.values)
        chunks = [self.items[start : start + size] for start in range(0, len(self.items), size)]
        losses = [float(self.passes(chunk, 3)) for chunk in chunks]
        return torch.tensor(losses, dtype=torch.float64), self.bank.values.grad.clone()

    def norms(self):
        return self.selector._norms.norms()


def assert_close(one, other, tolerance=1e-10):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_recorded_passes_give_the_losses_and_gradients_of_plain_ones(family, size):
    world, recorder = World(family), Repeats()
    plain = world.epoch(size)
    world.passes.record_with(recorder, world.items)
    for _ in range(3):  # Gemma 2 takes its softmax in float32
        assert_close(world.epoch(size), plain, 1e-7 if family == "gemma" else 1e-10)
    assert recorder.recorded == len(world.passes.graphs.recorded) > 0
    assert recorder.replayed > recorder.recorded
    assert any(shape[1] > len(item.input_ids) for shape in world.passes.graphs.recorded for item in world.items)


def test_strength_weights_values_and_masks_that_change_are_those_of_the_next_replay():
    world, recorder = World(), Repeats()
    world.passes.record_with(recorder, world.items)
    world.epoch()
    world.epoch()
    made = recorder.recorded
    buffer = world.bank.scales()
    world.bank.stand_at(MergePoint(0.0, 0.6, (0.7, 1.1)))
    world.bank.commit(world.selector.kept(world.selector.ranking(), MergePoint(0.5)))
    replayed = world.epoch()
    assert recorder.recorded == made
    assert world.bank.scales() is buffer
    world.passes.graphs = None
    assert_close(world.epoch(), replayed)


def test_channel_norms_are_gathered_once_a_pass_recorded_or_not():
    world = World(importance="activation")
    world.epoch()
    plain = world.norms()
    assert plain
    world.passes.record_with(Repeats(), world.items)
    for _ in range(3):
        world.selector._norms.reset()
        assert world.norms() == {}
        world.epoch()
        for module, norm in world.norms().items():
            torch.testing.assert_close(norm, plain[module], rtol=1e-12, atol=0)


def test_shapes_are_few():
    world, recorder = World(), Repeats()
    world.passes.record_with(recorder, world.items)
    for size in (1, 2, 3, 4, 5, 6):
        world.epoch(size)
        world.epoch(size)
    assert recorder.recorded <= 12
    assert len({shape[1] for shape in world.passes.graphs.recorded}) <= 6


def test_passes_that_are_not_bound_by_launches_run_as_they_are(monkeypatch):
    monkeypatch.setattr(step, "launch_bound_tokens", lambda _: 40)
    world, recorder = World("llama"), Repeats()
    plain = world.epoch(1), world.epoch(4)
    world.passes.record_with(recorder, world.items)
    for _ in range(2):
        for size, wanted in zip((1, 4), plain, strict=True):
            assert_close(world.epoch(size), wanted)
    assert world.passes.graphs.recorded
    assert all(rows * width <= 40 for rows, width in world.passes.graphs.recorded)
    assert max(len(item.input_ids) for item in world.items) * 4 > 40


def test_recordings_get_the_memory_that_is_left():
    world, recorder = World("llama"), Repeats()
    world.passes.leave_to_recordings(3)  # nothing is recorded yet
    world.passes.record_with(recorder, world.items)
    one, four = world.items[:1], world.items[:4]
    for left in (10**9, 50):
        world.passes.leave_to_recordings(left)
        assert world.passes.graphs.takes(one)
    with pytest.warns(UserWarning, match=r"no room to record training passes of \d+ tokens and more") as seen:
        assert not world.passes.graphs.takes(four)
    assert len(seen) == 1
    world.passes.leave_to_recordings(-7)
    world.passes.leave_to_recordings(50)
    assert not world.passes.graphs.takes(one)  # and it is not said again


def test_nothing_is_said_of_memory_where_passes_would_not_be_recorded_anyway(monkeypatch):
    monkeypatch.setattr(step, "launch_bound_tokens", lambda _: 3)
    world = World("llama")
    world.passes.record_with(Repeats(), world.items)
    world.passes.leave_to_recordings(1)
    assert not world.passes.graphs.takes(world.items[:1])


def test_a_large_model_computes_longer_than_it_launches():
    with torch.device("meta"):
        build = LlamaForCausalLM._from_config
        large = build(LlamaConfig(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, vocab_size=128256))
    assert 1000 < graphs.launch_bound_tokens(large) < 2048
    assert graphs.launch_bound_tokens(pico_model("llama")) > 10**6


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why_once():
    world = World()
    plain = world.epoch()
    world.passes.record_with(Repeats(error="operation not permitted when stream is capturing"), world.items)
    with pytest.warns(UserWarning, match=r"not recorded as CUDA graphs: operation not permitted") as seen:
        found = [world.epoch() for _ in range(3)]
    for one in found:
        assert_close(one, plain)
    assert len(seen) == 1
    assert world.passes.graphs.recorded == ()


def test_a_recording_that_gives_another_gradient_is_not_trusted():
    world = World()
    plain = world.epoch()
    graphs = world.passes

    class Stale(Repeats):
        """Adds a gradient that is not that of the pass."""

        def __call__(self, work):
            replay, result = super().__call__(work)

            def wrong() -> None:
                replay()
                world.bank.values.grad.add_(1.0)

            return wrong, result

    graphs.record_with(Stale(), world.items)
    with pytest.warns(UserWarning, match="another gradient"):
        found = [world.epoch() for _ in range(2)]
    for one in found:
        assert_close(one, plain)


@pytest.mark.parametrize("check", [True, False])
def test_work_that_ran_instead_of_being_recorded_is_not_trusted(check):
    """What a stream of another GPU does: the work runs as it is, and the replay of nothing does nothing."""
    world = World(importance="activation")
    plain, norms = world.epoch(), world.norms()
    world.selector._norms.reset()

    def at_once(work):
        return lambda: None, work()

    world.passes.record_with(at_once, world.items, check=check)
    with pytest.warns(UserWarning, match=r"another gradient \(it ran at once\)") as seen:
        found = world.epoch()
    assert len(seen) == 1
    assert world.passes.graphs.recorded == ()
    for one in (found, world.epoch()):
        assert_close(one, plain)
    for module, norm in world.norms().items():  # over two epochs by now
        torch.testing.assert_close(norm, norms[module] * 2**0.5, rtol=1e-12, atol=0)


def test_reasons_not_to_record_are_said():
    world = World()
    assert world.passes.not_recorded == "there is no GPU"


def test_a_gradient_buffer_is_needed():
    world = World()
    with pytest.raises(ValueError, match=r"bank\.values\.grad"):
        world.passes(world.items[:1], 1)


def longer(*parts):
    """Examples of so many prompt and answer tokens."""
    return [Encoded(str(i), tuple(3 + (i + 7 * j) % 250 for j in range(p + a)), p) for i, (p, a) in enumerate(parts)]


def test_answers_that_fill_their_rows_are_recorded_beside_short_ones():
    """A place predicts the token behind it: a row has one fewer than tokens, whatever the longest answer."""
    world, recorder = World(), Repeats()
    world.items = longer((10, 110), (8, 2), (1, 11), (0, 12), (9, 3), (118, 2)) * 2
    plain = world.epoch()
    world.passes.record_with(recorder, world.items)
    for _ in range(3):
        assert_close(world.epoch(), plain)
    assert world.passes.graphs.gave_up is None
    assert recorder.recorded >= 2


def test_answers_of_passes_that_are_not_recorded_widen_no_recording(monkeypatch):
    monkeypatch.setattr(step, "launch_bound_tokens", lambda _: 100)
    world = World()
    world.items = longer((55, 5), (54, 5), (200, 50))
    world.passes.record_with(Repeats(), world.items)
    assert world.passes.graphs._sizes.answer == 5
    batch, _ = world.passes.graphs._padded(world.items[:1], 1)
    assert len(batch.places) == 5


@pytest.mark.parametrize("fails", ["check", "recording"])
def test_memory_that_runs_out_while_a_recording_is_tried_ends_recording_alone(fails):
    """Neither the check nor the recording may end a run that goes on without, and nothing of them stays."""
    plain, world, alive = World().epoch(), World(), []

    def full(_work=None):
        made = torch.zeros(3)
        alive.append(weakref.ref(made))
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Body(type(world.passes._body)):
        def __call__(self, batch, weights, *, gather=True):
            if fails == "check" and not gather and not alive:
                full()
            assert all(ref() is None for ref in alive)
            return super().__call__(batch, weights, gather=gather)

    world.passes._body.__class__ = Body
    world.passes.record_with(Repeats() if fails == "check" else full, world.items)
    with pytest.warns(UserWarning, match="CUDA out of memory"):
        assert_close(world.epoch(), plain)
    assert len(alive) == 1
