"""Decoding with a cache of fixed size gives the tokens of plain greedy decoding; what it cannot do, it says."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.inject import Injection
from grasp_lora.config import MergeConfig
from grasp_lora.errors import TrainingError
from grasp_lora.pipeline import generation
from grasp_lora.pipeline.decoding import StaticDecoder, obstacle, unsuited
from grasp_lora.pipeline.generation import generate_answers
from pico import FAMILIES, pico_adapter, pico_model

PROMPTS = [[1, *range(40, 52)], [1, 90, 91, 92, 93, 94, 95], [1, 60, 61, 62, 63], [1, 70, 71], [1]]
NEW = 10
ABLE = ("llama", "qwen3", "gpt_neox", "gpt2")


class Ids:
    """A tokenizer that spells tokens as numbers."""

    pad_token_id = None

    def __init__(self, end):
        self.eos_token_id = end

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def naive(model, prompt):
    """Greedy decoding of one prompt, every step from the start, without a cache."""
    ids = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            batch = torch.tensor([ids], device=model.device)
            ids.append(int(model(batch, use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def decoder(model, rows=3, ends=(), capture=False):
    return StaticDecoder(model, rows, max(map(len, PROMPTS)), new=NEW, ends=ends, capture=capture)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", ABLE)
def test_the_tokens_are_those_of_plain_greedy_decoding(family, dtype):
    model = pico_model(family, dtype)
    expected = [naive(model, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in expected}) == len(expected)
    proceed = decoder(model)
    # The second batch is shorter in rows and in tokens, and runs in the buffers of the first.
    assert proceed(PROMPTS[:3]) + proceed(PROMPTS[3:]) == expected


@pytest.mark.parametrize("family", ABLE[:2])
def test_a_head_that_has_a_hook_and_attention_that_needs_a_mask(family):
    model = pico_model(family, torch.float64, attn_implementation="eager")
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    expected = [naive(model, prompt) for prompt in PROMPTS]
    proceed = decoder(model)
    assert proceed(PROMPTS[:3]) + proceed(PROMPTS[3:]) == expected
    handle.remove()
    assert not any("update" in vars(layer) for layer in proceed._cache.layers)


@pytest.mark.parametrize("family", ABLE)
def test_a_model_whose_logits_come_from_elsewhere_than_its_named_head(family, monkeypatch):
    model = pico_model(family, torch.float64)
    expected = [naive(model, prompt) for prompt in PROMPTS]
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    proceed = decoder(model)
    assert proceed(PROMPTS[:3]) + proceed(PROMPTS[3:]) == expected


def test_adapters_in_hooks_take_part():
    model = pico_model("llama", torch.float64)
    bank = AdapterBank([pico_adapter(model, "a")], MergeConfig(), torch.float64)
    plain = decoder(model)(PROMPTS[:3])
    with Injection(model, bank.modules) as injection, injection.active(bank.merged()):
        expected = [naive(model, prompt) for prompt in PROMPTS[:3]]
        assert decoder(model)(PROMPTS[:3]) == expected
    assert expected != plain


def test_decoding_ends_soon_after_every_row_has_ended():
    model = pico_model("llama", torch.float64)
    free = [naive(model, prompt) for prompt in PROMPTS[:3]]
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    early = decoder(model, ends=[row[1] for row in free])(PROMPTS[:3])
    assert len(steps) < NEW
    assert [row[:2] for row in early] == [row[:2] for row in free]
    steps.clear()
    decoder(model, ends=[max(map(max, free)) + 1])(PROMPTS[:3])
    assert len(steps) == NEW


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_so(monkeypatch):
    def broken(self):
        self._step()  # the one before
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StaticDecoder, "_captured", broken)
    model = pico_model("llama", torch.float64)
    proceed = decoder(model, capture=True)
    with pytest.warns(UserWarning, match=r"speed.static_cache: one token's step cannot be captured \("):
        assert proceed(PROMPTS[:3]) == [naive(model, prompt) for prompt in PROMPTS[:3]]
    assert "cannot be captured" in proceed.note


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ABLE)))
def test_models_with_sliding_windows_are_refused_with_a_reason(family):
    assert "do not attend to all tokens" in unsuited(pico_model(family))


def test_other_attention_is_refused_with_a_reason():
    model = pico_model("llama")
    assert unsuited(model) is None
    assert obstacle(model) == "not on a GPU"
    model.config._attn_implementation = "flash_attention_2"
    assert unsuited(model) == "attention flash_attention_2 takes no mask of its own"


@pytest.fixture
def everywhere(monkeypatch):
    """Decode with a fixed cache without a GPU, uncaptured."""
    monkeypatch.setattr(generation, "obstacle", unsuited)

    def uncaptured(*given, **named):
        return StaticDecoder(*given, **{**named, "capture": False})

    monkeypatch.setattr(generation, "StaticDecoder", uncaptured)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_answers_are_the_same_either_way_and_each_ends_at_its_own_end(everywhere, size):
    model = pico_model("llama", torch.float32)
    end = naive(model, PROMPTS[0])[4]
    model.generation_config.eos_token_id = end
    seen = []
    expected = generate_answers(model, Ids(end), PROMPTS, max_new_tokens=NEW, batch_size=size)
    found = generate_answers(
        model, Ids(end), PROMPTS, max_new_tokens=NEW, batch_size=size, static=True,
        on_progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert found == expected
    assert len({len(answer.split()) for answer in found}) > 1
    assert seen[-1] == (5, 5)
    assert generate_answers(model, Ids(end), [], max_new_tokens=NEW, batch_size=size, static=True) == []


@pytest.mark.filterwarnings("ignore:evaluate.batch_size")
def test_memory_that_runs_out_is_told(everywhere):
    model = pico_model("llama")

    def fail(*_):
        raise torch.OutOfMemoryError("tried to allocate")

    model.model.layers[0].register_forward_hook(fail)
    with pytest.raises(TrainingError, match=r"one answer .* Lower task\.max_length"):
        generate_answers(model, Ids(2), PROMPTS, max_new_tokens=NEW, batch_size=2, static=True)


def test_without_a_gpu_the_switch_changes_nothing_and_warns_of_nothing():
    model = pico_model("gemma")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_it, without = (
            generate_answers(model, Ids(2), PROMPTS, max_new_tokens=3, batch_size=2, static=on) for on in (True, False)
        )
    assert with_it == without


@pytest.mark.parametrize("static", [False, True])
def test_a_model_below_an_adapter_keeps_its_generation_config(static, everywhere):
    model = pico_model("llama")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    before = model.generation_config
    model.lm_head.eval()
    wrapped.train()
    modes = [module.training for module in wrapped.modules()]
    generate_answers(wrapped, Ids(2), PROMPTS, max_new_tokens=3, batch_size=2, static=static)
    assert model.generation_config is before
    assert wrapped.generation_config is before
    assert before.max_new_tokens is None
    assert [module.training for module in wrapped.modules()] == modes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("family", ABLE)
def test_a_captured_step_gives_the_same_tokens_with_and_without_adapters(family):
    model = pico_model(family, torch.float64).cuda()
    bank = AdapterBank([pico_adapter(model, "a")], MergeConfig(), torch.float64).to("cuda")
    with Injection(model, bank.modules) as injection:
        for factors in (bank.merged(), {}):
            fixed = {name: (a.detach(), b.detach()) for name, (a, b) in factors.items()}
            with injection.active(fixed):
                expected = [naive(model, prompt) for prompt in PROMPTS]
                proceed = decoder(model, capture=True)
                assert proceed(PROMPTS[:3]) + proceed(PROMPTS[3:]) == expected
                assert proceed.note is None
                assert proceed.captured
    plain = generate_answers(model, Ids(2), PROMPTS, max_new_tokens=NEW, batch_size=2)
    assert generate_answers(model, Ids(2), PROMPTS, max_new_tokens=NEW, batch_size=2, static=True) == plain


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_steps_are_captured_on_one_gpu_after_the_other():
    for device in ("cuda:0", "cuda:1"):
        model = pico_model("llama", torch.float64).to(device)
        expected = [naive(model, prompt) for prompt in PROMPTS]
        proceed = decoder(model, capture=True)
        assert proceed(PROMPTS[:3]) + proceed(PROMPTS[3:]) == expected
        assert proceed.captured
