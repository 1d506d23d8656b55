"""Sequences in one row without padding: the same losses and gradients, for the models that leave them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.pico import FAMILIES, pico_adapter, pico_model, pico_setup
from torch import nn
from transformers import Lfm2Config, Lfm2ForCausalLM, MixtralConfig, MixtralForCausalLM

from grasp_lora.adapters.inject import Injection
from grasp_lora.config import ModelConfig, SpeedConfig
from grasp_lora.data import collate, join
from grasp_lora.pipeline.models import freeze
from grasp_lora.probing import example_losses
from grasp_lora.probing.joined import attending, joins
from grasp_lora.probing.loss import answer_losses
from grasp_lora.training.step import TrainingPass

LONG = {"sliding_window": 64}  # longer than the examples


def family_model(family: str, dtype: torch.dtype = torch.float64):
    return pico_model(family, dtype, **(LONG if family in ("mistral", "gemma3") else {}))


def test_a_row_holds_every_sequence_as_it_is():
    items = pico_setup(pico_model("llama")).items("train")[:4]
    row, apart = join(items), collate(items, 0)
    assert row.input_ids.tolist() == [[token for item in items for token in item.input_ids]]
    assert row.joined.positions.tolist() == [[i for item in items for i in range(len(item.input_ids))]]
    assert torch.equal(row.labels.flatten()[row.places + 1], apart.labels.flatten()[apart.places + 1])
    flat = torch.zeros(apart.input_ids.numel(), dtype=torch.int64)
    flat[row.joined.rows] = row.input_ids[0]
    assert torch.equal(flat.view(apart.input_ids.shape), apart.input_ids)
    longer, full = join(items, 40, 32), join(items[:1] * 2, multiple=64)
    assert longer.input_ids.shape[1] % 32 == 0
    padding = longer.attention_mask[0] == 0
    assert not longer.joined.positions[0, padding].any()  # none that a sequence lacks
    assert longer.attention_mask.sum() == row.input_ids.numel() < longer.input_ids.numel()
    assert torch.equal(longer.joined.rows.sort().values.unique(), longer.joined.rows.sort().values)
    assert full.input_ids.numel() == 2 * len(items[0].input_ids)  # no place is left for padding
    with pytest.raises(ValueError, match="by example"):
        example_losses(pico_model("llama"), row)
    with pytest.raises(ValueError, match="does not fit"):
        join(items, 3)


def assert_joined_as_padded(model):
    """Losses and gradients of joined rows, of several layouts, against those of padded ones."""
    work = pico_setup(model)
    items, bank = work.items("train")[:5], work.bank([pico_adapter(model, "en", size=0.3)])
    longest = max(len(item.input_ids) for item in items)
    assert joins(model, longest)
    found = []
    with Injection(model, bank.modules) as injection:
        for batch in (collate(items, 0), join(items), join(items, longest + 7), join(items, None, 16)):
            values = bank.values.detach().requires_grad_()
            with injection.active(bank.merged(values)):
                losses = answer_losses(model, batch)
            found.append((losses.detach(), *torch.autograd.grad(losses.square().sum(), values)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=1e-10)
    assert found[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma"])
def test_losses_and_gradients_are_those_of_padded_rows(family):
    assert_joined_as_padded(family_model(family))


def test_soft_caps_which_sdpa_has_not_keep_their_padding():
    assert not joins(family_model("gemma"), 20)


def test_experts_that_take_every_token_by_itself_join():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = MixtralConfig(
        **sizes, num_hidden_layers=2, vocab_size=259, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
        initializer_range=0.25,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = MixtralForCausalLM._from_config(settings, experts_implementation="batched_mm").double().eval()
    assert_joined_as_padded(model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma"])
def test_a_row_may_be_longer_than_the_positions_of_the_model(family):
    model = family_model(family)
    items = pico_setup(model).items("train")
    row = join(items)
    assert row.input_ids.shape[1] > model.config.get_text_config().max_position_embeddings
    with torch.no_grad():
        found, wanted = answer_losses(model, row), answer_losses(model, collate(items, 0))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_head_with_an_adapter_sees_the_answers_of_a_row_only():
    model = family_model("llama")
    items = pico_setup(model).items("train")[:5]
    plain, row, shapes = answer_losses(model, collate(items, 0)), join(items), []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, args, _out: shapes.append(args[0].shape))
    torch.testing.assert_close(answer_losses(model, row), plain, rtol=0, atol=1e-12)
    handle.remove()
    assert [shape[:2] for shape in shapes] == [(1, len(row.places))]


class Remembering(nn.Module):
    """A layer norm that adds what the token before held, whatever sequence it is of."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden) + 1e-3 * hidden.roll(1, dims=1)


class Counting(nn.Embedding):
    """Positions that a model counts by itself."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.arange(ids.shape[-1])[None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_models_whose_tokens_meet_outside_of_attention_keep_their_padding(dtype):
    assert joins(family_model("llama", dtype), 20)
    leaking = family_model("llama", dtype)
    leaking.model.layers[1].input_layernorm = Remembering(leaking.model.layers[1].input_layernorm)
    assert not joins(leaking, 20)
    counting = family_model("gpt2", dtype)
    assert joins(counting, 20)
    counting = family_model("gpt2", dtype)
    counting.transformer.wpe = Counting.from_pretrained(counting.transformer.wpe.weight)
    assert not joins(counting, 20)
    alike = family_model("gpt2", dtype)  # positions that hardly differ
    table = alike.transformer.wpe.weight
    table.data = table[:1] + 0.02 * (table - table[:1])
    assert joins(alike, 20)
    alike = family_model("gpt2", dtype)
    alike.transformer.wpe = Counting.from_pretrained(table)
    assert not joins(alike, 20)
    assert not joins(pico_model("mistral", dtype), 20)  # its window is shorter
    assert not joins(nn.Linear(2, 2), 20)


@pytest.mark.parametrize("error", [AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError])
@pytest.mark.parametrize("where", ["get_input_embeddings", "forward"])
def test_models_that_cannot_be_tried_keep_their_padding(error, where, monkeypatch):
    model = family_model("llama")

    def broken(*_, **__):
        raise error("not here")

    monkeypatch.setattr(model, where, broken)
    assert not joins(model, 20)


def test_a_trial_without_memory_says_nothing_about_the_model(monkeypatch):
    model = family_model("llama")

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", full)
        assert not joins(model, 20)
    assert joins(model, 20)


@pytest.mark.parametrize("layers", [("conv", "full_attention"), ("full_attention", "conv"), ("full_attention",) * 2])
def test_a_hybrid_joins_only_where_all_layers_attend(layers):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Lfm2ForCausalLM(
            Lfm2Config(**sizes, num_hidden_layers=2, vocab_size=64, layer_types=list(layers), initializer_range=0.25)
        )
    assert joins(model, 20) is ("conv" not in layers)


def test_attention_refuses_tokens_that_are_not_those_of_the_row():
    model = family_model("llama")
    items = pico_setup(model).items("train")[:3]
    with attending(model, join(items).joined), pytest.raises(ValueError, match="other tokens"):
        model(input_ids=join(items[:2]).input_ids)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "padded"),
    [
        ({}, False),
        ({"speed": {"join_rows": False}}, True),
        ({"speed": {"skip_mask": False}}, True),
        ({"speed": {"compile_layers": "all"}}, True),
        ({"model": {"gradient_checkpointing": True}}, True),
    ],
)
def test_rows_are_padded_where_the_backward_pass_or_a_compiler_would_lose_them(change, padded):
    model = family_model("llama")
    work = pico_setup(model, {"model": change.get("model", {})})
    freeze(model, work.config.model)
    bank = work.bank([pico_adapter(model, "en")])
    with Injection(model, bank.modules) as injection:
        attached = replace(work.attach(injection, bank), speed=SpeedConfig(**change.get("speed", {})))
        assert TrainingPass(attached, work.items("train"), work.config.finalize, None).padded is padded


def test_checkpointing_that_is_turned_on_later_keeps_sequences_apart():
    found = []
    for late in (False, True):
        model = family_model("llama")
        work = pico_setup(model)
        items, bank = work.items("train")[:4], work.bank([pico_adapter(model, "en")])
        with Injection(model, bank.modules) as injection:
            training = TrainingPass(work.attach(injection, bank), items, work.config.finalize, None)
            bank.values.grad = torch.zeros_like(bank.values)
            if late:
                freeze(model, ModelConfig(gradient_checkpointing=True))
            model.train()
            training(items, 4)
            found.append(bank.values.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "changes", "random"),
    [
        ("gpt_neox", {}, False),  # their configurations name dropouts of heads that they lack
        ("gpt2", {}, False),
        ("gpt_neox", {"hidden_dropout": 0.1}, True),
        ("gpt2", {"attn_pdrop": 0.1}, True),
        ("llama", {"attention_dropout": 0.1}, True),
    ],
)
def test_dropout_that_a_model_has_keeps_the_padding(family, changes, random):
    model = pico_model(family, torch.float64, **changes)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en")])
    with Injection(model, bank.modules) as injection:
        found = TrainingPass(work.attach(injection, bank), work.items("train"), work.config.finalize, None)
    assert (found.random, found.padded) == (random, random)
