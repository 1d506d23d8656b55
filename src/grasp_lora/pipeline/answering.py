"""Answer new examples with an adapter on the base model, through PEFT, as a server would."""

from __future__ import annotations

from typing import Any

import torch

from ..config import Config
from ..data import build_task, encode_prompts, load_examples
from ..runs import Progress
from ..training.setup import Base
from .checks import check_serving
from .generation import generate_answers
from .models import attach_peft, load_base, load_tokenizer


def _served(config: Config, adapter: str | None) -> tuple[Base, torch.nn.Module]:
    """Return the base and the model that answers; the adapter passes the same preflight as in a run."""
    check_serving(config, adapter)
    base = load_base(config.model)
    return base, base.model if adapter is None else attach_peft(base.model, adapter)


def answer_prompt(config: Config, adapter: str | None, prompt: str) -> str:
    """Return the greedy answer to one prompt, taken literally (a begin token in front where the model has one)."""
    base, model = _served(config, adapter)
    begin = base.tokenizer.bos_token_id
    ids = [
        *([begin] if isinstance(begin, int) else []),
        *base.tokenizer(prompt, add_special_tokens=False)["input_ids"],
    ]
    return generate_answers(model, base.tokenizer, [ids], max_new_tokens=config.task.max_new_tokens, batch_size=1)[0]


def answer_file(config: Config, adapter: str | None, source: str, progress: Progress) -> list[dict[str, Any]]:
    """Return `{"id", "prediction"}` for every example of a file, in its order; answers in it are not read."""
    task = build_task(config.task.name, config.task.language, config.task.prompt, config.task.answer_prefix)
    examples = load_examples(source, config.task.name, config.data.fields, answered=False)
    room = max(config.task.max_length - config.task.max_new_tokens, 1)
    encoded = encode_prompts(examples, task, load_tokenizer(config.model), room)
    base, model = _served(config, adapter)
    note = encoded.report.sentence(source, room)
    if note:
        progress.warn(note)
    with progress.stage("generate", len(examples)) as bar:
        done = 0

        def advance(finished: int, _total: int) -> None:
            nonlocal done
            bar.advance(finished - done)
            done = finished

        predictions = generate_answers(
            model, base.tokenizer, [item.input_ids for item in encoded.items],
            max_new_tokens=config.task.max_new_tokens, batch_size=config.evaluate.batch_size,
            static=config.speed.static_cache, on_progress=advance,
        )  # fmt: skip
    return [{"id": e.id, "prediction": text} for e, text in zip(examples, predictions, strict=True)]
