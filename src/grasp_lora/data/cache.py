"""Token sequences kept on disk, so that many runs over the same files tokenize them once.

A file is named by a hash of everything that the tokens depend on: the tokenizer, the prompt, the limit and the texts.
Another text is another file; nothing is ever stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from .encode import CutReport, Encoded, EncodedSet, encode, encode_prompts
from .examples import Example
from .prompts import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
Encoder = Callable[[Sequence[Example], Task, "PreTrainedTokenizerBase", int], EncodedSet]


def encode_kept(
    folder: str | None, examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedSet:
    """Return what `encode` does, from `folder` when it is there; None keeps nothing."""
    return _kept(folder, encode, examples, task, tokenizer, max_length)


def encode_prompts_kept(
    folder: str | None, examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedSet:
    """Return what `encode_prompts` does, from `folder` when it is there; None keeps nothing."""
    return _kept(folder, encode_prompts, examples, task, tokenizer, max_length)


def _kept(
    folder: str | None, encoder: Encoder, examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> EncodedSet:  # fmt: skip
    vocabulary = getattr(tokenizer, "backend_tokenizer", None)
    if folder is None or vocabulary is None:  # a tokenizer written in Python has no one text that tells it apart
        return encoder(examples, task, tokenizer, limit)
    digest = hashlib.sha256(vocabulary.to_str().encode("utf-8"))
    what = [FORMAT, encoder.__name__, task.template, task.answer_prefix, limit, tokenizer.bos_token_id,
            tokenizer.eos_token_id, [astuple(example) for example in examples]]  # fmt: skip
    digest.update(json.dumps(what).encode("utf-8"))
    path = Path(folder) / f"{digest.hexdigest()[:32]}.npz"
    found = _read(path, examples)
    if found is None:
        found = encoder(examples, task, tokenizer, limit)
        _write(path, found)
    return found


def _read(path: Path, examples: Sequence[Example]) -> EncodedSet | None:
    """Return a kept set; None when there is none, or its file is damaged (it is then made again)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            ids, lengths, prompts, report = (kept[name].tolist() for name in ("ids", "lengths", "prompts", "report"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    items, start = [], 0
    for example, length, prompt in zip(examples, lengths, prompts, strict=True):
        items.append(Encoded(example.id, tuple(ids[start : start + length]), prompt))
        start += length
    return EncodedSet(tuple(items), CutReport(*report))


def _write(path: Path, found: EncodedSet) -> None:
    """Write in one step; two processes that tokenize the same texts write the same file."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(temporary, found)
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"run.tokens: {path.parent} cannot be written ({error.strerror}). Give another folder, or leave it out."
        ) from None


def _save(path: Path, found: EncodedSet) -> None:
    try:
        np.savez_compressed(
            path,
            ids=np.array([token for item in found.items for token in item.input_ids], np.int32),
            lengths=np.array([len(item.input_ids) for item in found.items], np.int32),
            prompts=np.array([item.prompt_length for item in found.items], np.int32),
            report=np.array(astuple(found.report), np.int64),
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
