"""Losses at the answer positions against full logits and against a sum written out."""

from __future__ import annotations

import pytest
import torch
from tests.pico import FAMILIES, pico_model, pico_setup

from grasp_lora.data import collate
from grasp_lora.probing import answer_logits, example_losses


class NoWindow(torch.nn.Module):
    """A model whose forward knows no `logits_to_keep`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, use_cache):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def batch_of(model, count=5):
    return collate(pico_setup(model).items("train")[:count], 0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answer_positions_give_the_logits_and_losses_of_the_whole(family):
    model = pico_model(family, torch.float64)
    batch = batch_of(model)
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2]))
    logits = answer_logits(model, batch)
    handle.remove()
    whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    rows, columns = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    answers = len(rows)
    assert torch.equal(batch.places, rows * batch.labels.shape[1] + columns)
    assert logits.shape[0] == answers < whole.shape[0] * whole.shape[1] / 2
    torch.testing.assert_close(logits, whole[rows, columns], rtol=0, atol=1e-12)
    losses = example_losses(model, batch)
    torch.testing.assert_close(losses, example_losses(model, batch, trim=True), rtol=0, atol=0)
    torch.testing.assert_close(losses, example_losses(NoWindow(model), batch, trim=False), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_head_with_a_hook_of_its_own_sees_whole_sequences():
    """An adapter on the head needs (batch, tokens, channels); the window of `logits_to_keep` serves then."""
    model = pico_model("llama", torch.float64)
    batch = batch_of(model)
    plain = example_losses(model, batch)
    shapes = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, args, _out: shapes.append(args[0].shape))
    torch.testing.assert_close(example_losses(model, batch), plain, rtol=0, atol=1e-12)
    handle.remove()
    assert [shape[0] for shape in shapes] == [5]
    assert shapes[0][1] < batch.input_ids.shape[1] / 2


@torch.no_grad()
def test_the_model_is_left_without_hooks():
    model = pico_model("llama")
    example_losses(model, batch_of(model))
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
@torch.no_grad()
def test_soft_caps_stay_in(family):
    model = pico_model(family)
    window = answer_logits(model, batch_of(model))
    assert 1.5 < window.abs().max() <= 2.0


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_answer_and_end_tokens_of_each_example():
    model = pico_model("llama", torch.float64)
    items = pico_setup(model).items("train")[:5]
    assert len({len(item.input_ids) - item.prompt_length for item in items}) > 1
    wanted = []
    for item in items:
        scores = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        answer = range(item.prompt_length, len(item.input_ids))
        wanted.append(-sum(float(scores[t - 1, item.input_ids[t]]) for t in answer) / len(answer))
    assert example_losses(model, collate(items, 0)).tolist() == pytest.approx(wanted, abs=1e-10)


@torch.no_grad()
def test_a_model_without_the_window_is_served_with_a_warning():
    model = pico_model("llama")
    batch = batch_of(model)
    with pytest.warns(UserWarning, match="NoWindow takes no logits_to_keep"):
        losses = example_losses(NoWindow(model), batch)
    torch.testing.assert_close(losses, example_losses(model, batch))


@torch.no_grad()
def test_half_precision_losses_are_summed_in_float32():
    model = pico_model("llama", torch.bfloat16)
    losses = example_losses(model, batch_of(model))
    assert losses.dtype == torch.float32
