"""Greedy answers from any causal language model of transformers, in left-padded batches with a cache."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from ..errors import ModelError, TrainingError
from ..probing.layers import modes_kept
from .decoding import StaticDecoder, bare, obstacle

Continue = Callable[[Sequence[Sequence[int]]], list[list[int]]]
# How many answers at once a model's GPU has turned out to hold, where it was asked for more.
_FITTING: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    static: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return one answer per prompt, decoded without special tokens, without white space around it.

    Prompts are token ids and keep their order in the result; a batch holds prompts of similar length, the longest
    first, and in float64 a single one. Each answer ends at the first end token of the tokenizer or of the model's
    generation config, or after `max_new_tokens`. With `static`, a GPU decodes with a cache of fixed size and a captured
    step (`StaticDecoder`); a model that cannot is told in a warning and answers through transformers' own loop.
    `on_progress(done, total)` is called after every batch. Everything else in the checkpoint's generation config
    (sampling, penalties, lengths) is left out, and the model is left as it was found.

    Raises `ValueError` for an empty prompt, `ModelError` without any end token, `TrainingError` when a GPU's memory
    holds not even one answer; batches that do not fit are halved.
    """
    if batch_size < 1 or max_new_tokens < 1 or not all(len(prompt) for prompt in prompts):
        raise ValueError("batch_size, max_new_tokens and the length of every prompt must be at least 1")
    if next(model.parameters()).dtype == torch.float64:
        # Eager attention takes its softmax in float32, where a float64 mask is -inf: padded rows would be NaN.
        batch_size = 1
    ends = end_tokens(model, tokenizer)
    settings = greedy_settings(max_new_tokens, ends)
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    answers = [""] * len(prompts)
    with generating(model, settings):
        proceed = Continuing(model, settings, min(batch_size, len(order)), max(map(len, prompts), default=0), static)
        done = 0
        while done < len(order):
            continued = proceed([prompts[place] for place in order[done : done + batch_size]])
            for place, ids in zip(order[done:], continued, strict=False):
                answers[place] = _decode(tokenizer, ids, ends)
            done += len(continued)
            if on_progress is not None:
                on_progress(done, len(prompts))
    return answers


def end_tokens(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's and those of the model's generation config."""
    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    known = {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}
    if not known:
        raise ModelError(
            "neither the tokenizer nor the model's generation config has an end token, so no answer could end. "
            "Set eos_token in tokenizer_config.json."
        )
    return tuple(sorted(known))


def greedy_settings(max_new_tokens: int, ends: Sequence[int] | None) -> GenerationConfig:
    """Return settings of greedy decoding with a cache; without `ends` it stops at `max_new_tokens` only.

    Padding is masked and finished rows are cut at their end, so an end token pads, whether or not the
    tokenizer has a padding token (which may lie outside the embedding).
    """
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) if ends else None,
        pad_token_id=ends[0] if ends else None,
    )


@contextmanager
def generating(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Put the model in eval mode with `settings` as its generation config; undo both after.

    Passing a config to `generate` is not enough: what it leaves open is filled in from the checkpoint's. Eval
    mode also keeps gradient checkpointing, which would forbid the cache, out of the way.
    """
    owners: list[Any] = list({id(owner): owner for owner in (model, bare(model))}.values())
    before = [owner.generation_config for owner in owners]
    with modes_kept(model):
        model.eval()
        try:
            for owner in owners:  # PEFT's `generate` hands the wrapper's to the model below
                owner.generation_config = settings
            yield
        finally:
            for owner, own in zip(owners, before, strict=True):
                owner.generation_config = own


def continuation(model: nn.Module, settings: GenerationConfig, *, rows: int, longest: int, static: bool) -> Continue:
    """Return what continues a batch of at most `rows` prompts of at most `longest` tokens: their new token ids.

    The ids go on after a row's end with no meaning. Call it inside of `generating`, with one set of adapter factors.
    """
    why = obstacle(model) if static else None
    if static and why is None:
        new, ends = settings.max_new_tokens or 1, settings.eos_token_id or ()
        return StaticDecoder(model, rows, longest, new=new, ends=ends, capture=True)
    if why is not None and next(model.parameters()).device.type == "cuda":
        warnings.warn(f"speed.static_cache: {why}; answers take transformers' own loop.", stacklevel=2)
    return partial(_continue, model, settings)


class Continuing:
    """Continues the first of the prompts it is given, as many as memory holds: half as many when it runs out.

    A run that is about to be judged is not lost to a batch that was chosen too large. A warning says so, and later
    calls with the same model begin with what has fitted.
    """

    def __init__(self, model: nn.Module, settings: GenerationConfig, rows: int, longest: int, static: bool) -> None:
        self._model, self._settings, self._longest = model, settings, longest
        self._rows = min(rows, _FITTING.get(model, rows))
        self._static = static and rows > 0
        self._continue: Continue | None = None

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the new token ids of at least one prompt; raises `TrainingError` when not even one fits."""
        while True:
            chosen = prompts[: self._rows]
            found, why = self._try(chosen)
            if found is not None:
                return found
            self._continue = None  # its buffers go before smaller ones are made
            torch.cuda.empty_cache()
            if len(chosen) == 1:
                raise TrainingError(
                    f"out of GPU memory while generating one answer ({why}). Lower task.max_length or "
                    "task.max_new_tokens."
                )
            self._rows = _FITTING[self._model] = len(chosen) // 2
            warnings.warn(
                f"evaluate.batch_size: {len(chosen)} answers at once do not fit into GPU memory; "
                f"{self._rows} at once from now on.",
                stacklevel=3,
            )

    def _try(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]] | None, str]:
        """Return the answers, or what ran out; the error is let go of, since it holds on to the memory of its pass."""
        try:
            if self._continue is None:
                self._continue = continuation(
                    self._model, self._settings, rows=self._rows, longest=self._longest, static=self._static
                )
            return self._continue(prompts), ""
        except torch.OutOfMemoryError as error:
            return None, str(error)


def _continue(model: Any, settings: GenerationConfig, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Continue a batch with transformers' own loop."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    # no_grad and not inference_mode: adapter tensors that hooks touch stay usable for training.
    with torch.no_grad():
        out = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _decode(tokenizer: Any, ids: Sequence[int], ends: Sequence[int]) -> str:
    kept = next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)
    text: str = tokenizer.decode(list(kept), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
