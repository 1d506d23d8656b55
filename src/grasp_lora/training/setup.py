"""What every stage works on: the frozen base model, the task, and the encoded examples of each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..adapters.bank import AdapterBank
from ..adapters.discover import module_shapes, output_head
from ..adapters.inject import Injection
from ..adapters.peft_load import AdapterFactors
from ..config import Config
from ..data import Encoded, EncodedSet, Example, Task, build_task, encode_kept
from ..errors import DataError
from ..probing import Attached, Evaluator
from ..probing.compiled import CompiledLayers
from ..probing.fused import fuse_layers
from ..probing.norms import fuse_norms


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer.

    `name` and `revision` are what an exported adapter records as its base model; `fingerprint` is a content hash for
    the manifest.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the first parameter, where inputs go."""
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        """Token id that fills a batch; it is masked, so the end token serves where no pad token exists."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (d_out, d_in) of every linear module."""
        return module_shapes(self.model)

    @property
    def head(self) -> str | None:
        """Name of the output head among `shapes`, if it is there."""
        return output_head(self.model)


@dataclass(frozen=True)
class Setup:
    """A base model, a configuration and the examples of the target (and, where given, the source) language.

    `target` and `source` map split names (train, dev, micro_dev, test) to examples.
    """

    config: Config
    base: Base
    target: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    source: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """The target task: prompts and answer prefix."""
        task = self.config.task
        return build_task(task.name, task.language, task.prompt, task.answer_prefix)

    @cached_property
    def source_task(self) -> Task:
        """The source task."""
        task = self.config.task
        return build_task(task.name, task.source_language, task.source_prompt)

    @cached_property
    def _encoded(self) -> dict[str, EncodedSet]:
        return {}

    def encoded(self, split: str, role: str = "target") -> EncodedSet:
        """Return a split's token ids and how many examples were cut; raises `DataError` when it was not given."""
        key = f"{role}.{split}"
        if key not in self._encoded:
            examples = (self.target if role == "target" else self.source).get(split)
            if not examples:
                raise DataError(
                    f"data.{key}: no examples. Give the file with --set data.{key}=FILE; "
                    "it is never taken from another split."
                )
            task = self.task if role == "target" else self.source_task
            kept, limit = self.config.run.tokens, self.config.task.max_length
            self._encoded[key] = encode_kept(kept, examples, task, self.base.tokenizer, limit)
        return self._encoded[key]

    def items(self, split: str, role: str = "target") -> tuple[Encoded, ...]:
        """Return the encoded examples of a split."""
        return self.encoded(split, role).items

    def has(self, split: str, role: str = "target") -> bool:
        """Return whether a split was given."""
        return bool((self.target if role == "target" else self.source).get(split))

    def bank(self, adapters: Sequence[AdapterFactors]) -> AdapterBank:
        """Return the adapters as a bank on the model's device: float32, or float64 under a float64 model."""
        double = next(self.base.model.parameters()).dtype == torch.float64
        bank = AdapterBank(adapters, self.config.merge, torch.float64 if double else torch.float32)
        return bank.to(self.base.device)

    def attach(self, injection: Injection, bank: AdapterBank) -> Attached:
        """Return the model with a bank attached, as loops and evaluators take it; its layers sped up as configured."""
        model, speed = self.base.model, self.config.speed
        if self.base.device.type == "cuda" and speed.fused_norms and speed.compile_layers != "all":
            injection.keep(fuse_norms(model))
        if speed.fused_kernels and speed.compile_layers == "none":
            injection.keep(fuse_layers(model))
        if speed.compile_layers != "none":
            injection.keep(CompiledLayers(model, injection, training=speed.compile_layers == "all"))
        return Attached(self.base.model, injection, bank, self.base.pad_id, self.config.speed)

    def evaluator(self, attached: Attached, split: str, *, role: str = "target", batch_size: int = 16) -> Evaluator:
        """Return an evaluator of a split's losses."""
        return Evaluator(attached, self.items(split, role), batch_size=batch_size)
