"""What is measured: shapes of models with random weights, and examples of random tokens with fixed lengths."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from ...adapters.discover import dims, resolve_target_modules
from ...adapters.peft_load import AdapterFactors, Factor
from ...config import Config, LoraConfig, load_config
from ...data import CutReport, Encoded, EncodedSet
from ...errors import ConfigError
from ...probing.memory import numbers_in
from ...rng import torch_generator
from ...training.setup import Base, Setup
from ..models import random_weights, resolve_device

_LLAMA3 = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
# A 32nd of the width, an eighth of the depth.
_SMALL = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1,
    "intermediate_size": 448, "vocab_size": 4096,
}  # fmt: skip
_POSITIONS = 8192
_SETTINGS = {
    "seed": 0,
    "model": {"name_or_path": "random weights"},
    "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "prune": {"importance": "activation"},
    "controller": {"early_stop": False},
    "search": {"epochs": 10, "patience": None},
    "finalize": {"epochs": 10, "accumulation": 8, "mask": "dynamic", "patience": None, "keep_start": False},
}
# Sections and settings that nothing of a measurement follows.
_UNSEEN = {
    "task", "data", "adapters", "train_source", "train_target", "evaluate", "export", "run", "compare",
    "model.name_or_path", "model.revision", "model.trust_remote_code",
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """A Llama shape and its examples: prompts of `randint(low, high)` tokens, answers of `answer` tokens.

    `matmul` is the side of the square product that gives the matrix rate; generation answers `generated` prompts of
    `prompt` tokens with `new_tokens` each, in one batch.
    """

    name: str
    shape: dict[str, int]
    low: int
    high: int
    answer: int
    matmul: int
    needs_gpu: bool = False
    adapters: int = 2
    train: int = 50
    micro_dev: int = 16
    generated: int = 25
    prompt: int = 363
    new_tokens: int = 64

    def examples(self) -> dict[str, tuple[Encoded, ...]]:
        """Return the examples of `train` and `micro_dev`; lengths and tokens are the same every time."""
        lengths = random.Random(0)
        prompts = [lengths.randint(self.low, self.high) for _ in range(self.train + self.micro_dev)]
        tokens = random.Random(1)
        made = tuple(self._example(tokens, str(i), prompt) for i, prompt in enumerate(prompts))
        return {"train": made[: self.train], "micro_dev": made[self.train :]}

    def prompts(self) -> list[list[int]]:
        """Return the prompts that are answered, all of one length."""
        tokens = random.Random(2)
        return [[self._token(tokens) for _ in range(self.prompt)] for _ in range(self.generated)]

    def _example(self, tokens: random.Random, name: str, prompt: int) -> Encoded:
        return Encoded(name, tuple(self._token(tokens) for _ in range(prompt + self.answer)), prompt)

    def _token(self, tokens: random.Random) -> int:
        return tokens.randrange(3, self.shape["vocab_size"])

    def config(self, sets: Sequence[str] = ()) -> Config:
        """Return the settings of search and final run, the user's `section.key=value` pairs on top.

        Raises `ConfigError` for a setting that is wrong, that random weights cannot have, or that is not looked at.
        """
        for name in (pair.partition("=")[0].strip() for pair in sets):
            if name.partition(".")[0] in _UNSEEN or name in _UNSEEN:
                raise ConfigError(f"--set {name}: bench makes its own weights, adapters and examples. Leave it out.")
        config = load_config(None, sets, _SETTINGS)
        wrong = next((what for what, refused in _refused(config).items() if refused), None)
        if wrong is not None:
            raise ConfigError(wrong)
        return config

    def model(self, config: Config) -> PreTrainedModel:
        """Return the frozen model, its random weights made where and as they stay: no download, no second copy.

        Raises `ConfigError` without a GPU where one is needed.
        """
        self.require(resolve_device(config.model.device))
        build: Any = LlamaConfig
        return random_weights(build(**self.shape, max_position_embeddings=_POSITIONS), config.model, self.name)

    def check_targets(self, lora: LoraConfig) -> None:
        """Raise `ConfigError` for adapters that the shape has no modules for; makes no weights."""
        settings: Any = LlamaConfig
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            resolve_target_modules(build(settings(**self.shape)), lora.target_modules)

    def require(self, device: torch.device) -> None:
        """Raise `ConfigError` when the workload needs a GPU and the device is none."""
        if self.needs_gpu and device.type != "cuda":
            raise ConfigError(
                f"--workload {self.name} needs a GPU (device {device}). Use its small twin "
                f"{self.name.replace('8b', 'cpu')}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all sizes as JSON values."""
        return asdict(self)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlqa-8b", _LLAMA3, 250, 450, 8, 8192, needs_gpu=True),
        Workload("xlsum-8b", _LLAMA3, 600, 1800, 60, 8192, needs_gpu=True, prompt=1239),
        Workload("mlqa-cpu", _SMALL, 62, 112, 2, 1024, prompt=90, new_tokens=16),
        Workload("xlsum-cpu", _SMALL, 150, 450, 15, 1024, prompt=310, new_tokens=16),
    )
}


def _refused(config: Config) -> dict[str, bool]:
    """Return what random weights, random tokens and a search that is timed cannot have, and whether it is asked for."""
    final, dev = config.finalize, "bench has no dev data"
    return {
        "model.quantization: bench makes its own weights, in model.dtype. Leave it at none.":
            config.model.quantization != "none",
        "search.epochs: bench times a search that trains. Give at least 1.": not config.search.epochs,
        "controller.interval: bench tells rounds from steps, which takes an interval above 1.":
            config.controller.interval < 2,
        "controller.early_stop: bench times every round of a search. Leave it at false.": config.controller.early_stop,
        "finalize.adapter: reuse makes no final run, which bench times too. Leave it at fresh.":
            final.adapter == "reuse",
        f"search.patience: {dev}. Leave it at null.": config.search.patience is not None,
        f"finalize.patience: {dev}. Leave it at null.": final.patience is not None,
        f"finalize.keep_start: {dev}. Leave it at false.": final.keep_start,
        f"finalize.keep: {dev}. Leave it at grasp.": final.keep != "grasp",
    }  # fmt: skip


@dataclass(frozen=True)
class TokenSetup(Setup):
    """A `Setup` whose splits are token ids already, by name; all of them are the target's."""

    splits: Mapping[str, tuple[Encoded, ...]] = field(default_factory=dict)

    def encoded(self, split: str, role: str = "target") -> EncodedSet:
        """Return a split as it was given; nothing was cut."""
        items = self.splits[split]
        return EncodedSet(items, CutReport(len(items), 0, 0, max(len(item.input_ids) for item in items)))

    def has(self, split: str, role: str = "target") -> bool:
        """Return whether a split was given."""
        return role == "target" and split in self.splits


def setup_of(workload: Workload, config: Config, model: PreTrainedModel) -> TokenSetup:
    """Return what the stages of a run work on, for a workload."""
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    base = Base(model, tokenizer, "random weights", "random weights")
    return TokenSetup(config, base, splits=workload.examples())


def random_adapters(model: PreTrainedModel, count: int, lora: LoraConfig) -> list[AdapterFactors]:
    """Return adapters of a shape with random A and B, small enough that losses stay finite."""
    generator = torch_generator(0, "bench", "adapters")
    made = []
    for index in range(count):
        factors = {}
        for module in sorted(resolve_target_modules(model, lora.target_modules)):
            d_out, d_in = dims(model.get_submodule(module))
            a, b = (torch.randn(shape, generator=generator) * 0.02 for shape in ((lora.r, d_in), (d_out, lora.r)))
            factors[module] = Factor(a, b, lora.alpha / lora.r)
        made.append(AdapterFactors(name=f"random{index}", origin="random", sha256="", modules=factors))
    return made


def body_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters that every token passes through: all but embeddings and head."""
    whole: Any = model  # transformers annotates these methods in part only
    ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
    outside = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
    return sum(numbers_in(parameter) for parameter in model.parameters() if id(parameter) not in outside)


def mean_tokens(items: Sequence[Encoded]) -> float:
    """Return the mean length of sequences in tokens."""
    return sum(len(item.input_ids) for item in items) / len(items)
