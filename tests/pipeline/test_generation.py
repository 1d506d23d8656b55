from __future__ import annotations

import itertools
import logging
import warnings
from typing import Any

import pytest
import torch
from tests.pico import pico_tokenizer
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grasp_lora.errors import ModelError, TrainingError
from grasp_lora.pipeline.generation import end_tokens, generate_answers

NEW = 12
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 259,
}
PROMPTS = [[1, 70, 71], [1, *range(40, 52)], [1], [1, 90, 91, 92, 93, 94, 95], [1, 60, 61, 62, 63]]


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    settings = {
        **SIZES,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def naive(model: PreTrainedModel, prompt: list[int], ends: set[int]) -> list[int]:
    """Greedy decoding of one prompt, every step from the start, without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


class Ids:
    """A tokenizer that spells tokens as numbers, so that a comparison of texts is one of tokens."""

    eos_token_id: int | None = 2
    pad_token_id = None

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def spell(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def generate(model: nn.Module, batch_size: int, tokenizer: Any = None, prompts: Any = PROMPTS) -> list[str]:
    return generate_answers(model, tokenizer or Ids(), prompts, max_new_tokens=NEW, batch_size=batch_size)


def qwen() -> PreTrainedModel:
    torch.manual_seed(2)
    settings = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5, "eos_token_id": 2}
    return Qwen3ForCausalLM(Qwen3Config(**settings))


def gemma() -> PreTrainedModel:
    torch.manual_seed(4)
    settings = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "initializer_range": 0.5}
    return Gemma2ForCausalLM(Gemma2Config(**settings, eos_token_id=2, bos_token_id=1))


def neox() -> PreTrainedModel:
    torch.manual_seed(3)
    settings = {**SIZES, "initializer_range": 0.5, "eos_token_id": 2, "bos_token_id": 1}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**settings))


@pytest.mark.parametrize("build", [llama, qwen, neox, gemma, lambda: gemma().double()])
def test_batches_equal_single_prompts_and_a_loop_without_a_cache(build: Any) -> None:
    model = build().eval()
    expected = [spell(naive(model, prompt, {2})) for prompt in PROMPTS]
    assert len(set(expected)) == len(expected)
    assert generate(model, 1) == expected
    assert generate(model, 2) == expected
    assert generate(model, 5) == expected
    assert generate(model, 99) == expected


def test_each_row_stops_at_its_own_end() -> None:
    model = llama().eval()
    free = [naive(model, prompt, set()) for prompt in PROMPTS]
    ends = {2, free[0][3], free[1][7]}
    model.generation_config.eos_token_id = sorted(ends - {2})
    answers = generate(model, 5)
    assert answers == [spell(naive(model, prompt, ends)) for prompt in PROMPTS]
    lengths = [len(answer.split()) for answer in answers]
    assert lengths[0] <= 3
    assert max(lengths) == NEW
    assert len(set(lengths)) > 2


def test_an_end_at_once_is_an_empty_answer() -> None:
    model = llama().eval()
    first = naive(model, PROMPTS[0], set())[0]
    model.generation_config.eos_token_id = first
    assert generate(model, 1, prompts=[PROMPTS[0]]) == [""]


def test_answers_are_decoded_and_stripped() -> None:
    class Spaced(Ids):
        def decode(self, ids: list[int], **settings: Any) -> str:
            assert settings["skip_special_tokens"]
            return f" {len(ids)} \n"

    assert generate(llama(), 2, Spaced(), PROMPTS[:1]) == [str(NEW)]


@pytest.mark.parametrize("pad", [True, False])
def test_with_a_real_tokenizer_with_and_without_padding_token(pad: bool) -> None:
    tokenizer = pico_tokenizer(pad=pad)
    model = llama().eval()
    expected = [tokenizer.decode(naive(model, p, {2}), skip_special_tokens=True).strip() for p in PROMPTS]
    assert generate(model, 3, tokenizer) == expected


def test_the_checkpoints_generation_config_does_not_leak_and_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = llama().eval()
    expected = generate(model, 5)
    sampling = {"do_sample": True, "temperature": 0.3, "top_p": 0.5, "top_k": 3}
    penalties = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_length": 5}
    before = GenerationConfig(**sampling, **penalties, use_cache=False, eos_token_id=2)
    model.generation_config = before
    model.config.use_cache = False
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, 5) == expected
    assert model.generation_config is before
    assert model.config.use_cache is False
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_modes_come_back_and_checkpointing_does_not_interfere() -> None:
    model = llama(attention_dropout=0.5)
    expected = generate(model.eval(), 5)
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.2x
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, 5) == expected
    assert [module.training for module in model.modules()] == modes
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_forward_hooks_on_linear_modules_take_part() -> None:
    model = llama().eval()
    plain = generate(model, 5)
    delta = torch.nn.Parameter(torch.randn(SIZES["hidden_size"], dtype=torch.float32))
    hook = model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda _m, _i, out: out + delta)
    hooked = generate(model, 5)
    assert hooked != plain
    assert hooked == [spell(naive(model, prompt, {2})) for prompt in PROMPTS]
    hook.remove()
    assert not delta.is_inference()
    assert delta.grad is None


def test_progress_and_no_prompts() -> None:
    seen: list[tuple[int, int]] = []
    generate_answers(
        llama(), Ids(), PROMPTS, max_new_tokens=1, batch_size=2, on_progress=lambda *step: seen.append(step)
    )  # fmt: skip
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert generate(llama(), 2, prompts=[]) == []


@pytest.mark.filterwarnings("ignore:evaluate.batch_size")
def test_a_mode_change_is_taken_back_when_generation_fails() -> None:
    model = llama().train()
    config = model.generation_config

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    model.model.layers[0].register_forward_hook(fail)
    with (
        pytest.raises(TrainingError, match=r"one answer .* Lower task\.max_length"),
        pytest.warns(UserWarning, match="1 at once"),
    ):
        generate(model, 5)
    assert model.training
    assert model.generation_config is config


def test_batches_that_do_not_fit_are_halved_and_answers_stay() -> None:
    model, wanted, seen = llama(), generate(llama(), 2), []

    def fail(_module: Any, args: tuple[Any, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("tried to allocate")

    model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match=r"evaluate\.batch_size: 5 answers at once do not fit .* 2 at once") as said:
        answers = generate_answers(
            model, Ids(), PROMPTS, max_new_tokens=NEW, batch_size=5, on_progress=lambda *step: seen.append(step)
        )
    assert answers == wanted
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert len(said) == 1
    assert generate(model, 5) == wanted  # what has fitted is known by now: nothing is tried and said again


def test_wrong_input() -> None:
    model = llama()
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, 1, prompts=[[1], []])
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, 0)
    model.generation_config.eos_token_id = None

    class Endless(Ids):
        eos_token_id = None

    with pytest.raises(ModelError, match="end token"):
        generate(model, 1, Endless())


def test_end_tokens_join_tokenizer_and_model() -> None:
    model = llama()
    for own, expected in ((None, (2,)), (7, (2, 7)), ([9, 2], (2, 9))):
        model.generation_config.eos_token_id = own
        assert end_tokens(model, Ids()) == expected


def test_order_of_prompts_is_that_of_answers() -> None:
    model = llama().eval()
    known = {tuple(p): a for p, a in zip(PROMPTS, generate(model, 1), strict=True)}
    for order in itertools.islice(itertools.permutations(PROMPTS), 0, 120, 37):
        assert generate(model, 2, prompts=order) == [known[tuple(p)] for p in order]
