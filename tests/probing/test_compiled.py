"""Layers compiled by a backend that compiles nothing: the same numbers, one code for all, nothing left behind."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.pico import pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import ChannelNorms, Injection
from grasp_lora.config import TrainingConfig
from grasp_lora.probing.compiled import CompiledLayers
from grasp_lora.training.step import TrainingPass

# PyTorch's own, while it traces
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Counting:
    """Compiles functions by a backend that counts the graphs it is given, or fails."""

    def __init__(self, fails=False):
        self.graphs, self._fails = 0, fails

    def __call__(self, function):
        return torch.compile(function, backend=partial(self._backend))  # another object each time, as PyTorch's own

    def _backend(self, graph, inputs):
        self.graphs += 1
        if self._fails:
            raise RuntimeError("no compiler here")
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def numbers(work, bank, attached):
    """Losses of probes and passes of several sizes, and the gradient."""
    items = work.items("train")
    half = torch.arange(bank.kept.numel()) % 2 == 0
    out = [work.evaluator(attached, "micro_dev", batch_size=n).candidate_losses([bank.kept, half]) for n in (1, 3)]
    attached.model.train()
    step = TrainingPass(attached, items, TrainingConfig(), None)
    bank.values.grad = torch.zeros_like(bank.values)
    out += [step(items[i : i + 1], 6) for i in range(4)]
    return [*out, bank.values.grad]


def test_all_layers_and_shapes_share_a_graph_for_probes_and_one_for_training():
    model = pico_model("llama", torch.float64, num_hidden_layers=4).requires_grad_(False)
    work, compiler = pico_setup(model), Counting()
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    with Injection(model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        plain = numbers(work, bank, attached)
        injection.keep(CompiledLayers(model, injection, training=True, compiler=compiler))
        for one, other in zip(numbers(work, bank, attached), plain, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert compiler.graphs == 2
        probe, norms = work.evaluator(attached, "micro_dev"), ChannelNorms()
        probe.losses(norms=norms)
        assert compiler.graphs == 2
        assert set(norms.norms()) == set(bank.modules)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_compiler_that_fails_is_left_with_one_warning():
    model = pico_model("llama", torch.float64, num_hidden_layers=4)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en")])
    with Injection(model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev")
        plain = probe.candidate_losses([bank.kept, ~bank.kept])
        compiled = CompiledLayers(model, injection, training=False, compiler=Counting(fails=True))
        injection.keep(compiled)
        with pytest.warns(UserWarning, match="layers are not compiled: ") as seen:
            losses = [probe.candidate_losses([bank.kept, ~bank.kept]) for _ in range(2)]
    assert len(seen) == 1
    assert compiled.gave_up is not None
    for one in losses:
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)


def test_a_setting_asks_for_it():
    model = pico_model("llama", torch.float64, num_hidden_layers=4)
    work = pico_setup(model, {"speed": {"compile_layers": "probes"}})
    bank = work.bank([pico_adapter(model, "en")])
    with Injection(model, bank.modules) as injection:
        work.attach(injection, bank)
        assert sum("forward" in vars(layer) for layer in model.model.layers) == 3
    assert not any("forward" in vars(layer) for layer in model.model.layers)
