"""Checks that need no weights: settings, splits, leakage, micro-dev, lengths, adapters.

`preflight` stops at the first problem and runs before a run folder is touched or weights are loaded; `validate` goes
through the same checks and gathers all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ..adapters.discover import module_shapes, output_head, resolve_target_modules
from ..adapters.merge import check_ranks
from ..adapters.peft_load import AdapterFactors, load_adapter
from ..config import Config, SplitFiles
from ..data import (
    EncodedSet,
    Example,
    Splits,
    Task,
    build_task,
    check_leakage,
    check_micro_dev,
    encode_kept,
    encode_prompts_kept,
    load_examples,
    require_splits,
)
from ..errors import ConfigError, GraspError
from .export import check_mergeable
from .models import check_device, load_tokenizer, recorded_name, skeleton

T = TypeVar("T")
Examples = dict[str, list[Example]]


def required_splits(config: Config, *, search: bool = True) -> list[str]:
    """Return the splits that a run cannot do without, as `side.name`."""
    needed = ["target.train"]
    if search or config.final_importance != "magnitude":
        needed.append("target.micro_dev")
    if config.adapters.source is None:
        needed.append("source.train")
    if config.search.patience is not None and search:
        needed.append("target.dev")
    return needed


@dataclass(frozen=True)
class Finding:
    """One line of `validate`: what was checked and what was seen; `error` is set when it failed."""

    what: str
    seen: str
    error: GraspError | None = None

    @property
    def sentence(self) -> str:
        """What was checked and what came of it; a message that begins with what was checked does not say it twice."""
        message = self.seen if self.error is None else str(self.error)
        return message if message.startswith((f"{self.what} ", f"{self.what}:")) else f"{self.what}: {message}"


@dataclass(frozen=True)
class Checked:
    """What the checks have read: splits by `side.name`, their tokens, the model without weights, adapters by role."""

    splits: Splits
    encoded: Mapping[str, EncodedSet]
    model: nn.Module
    adapters: Mapping[str, AdapterFactors]
    warnings: tuple[str, ...]


def preflight(config: Config, needs: Sequence[str] | None = None, extra: Mapping[str, str] | None = None) -> Checked:
    """Check everything that can fail before weights are loaded, and return what was read on the way.

    `needs` are the splits that must be there (default: those of a whole run), `extra` further adapters by name.
    Raises the `GraspError` of the first problem.
    """
    inspection = _Inspection(config, strict=True)
    return inspection.all(required_splits(config) if needs is None else needs, extra or {})


def validate(config: Config) -> list[Finding]:
    """Check all that can be checked without training or a GPU: settings, model, data, leakage, lengths, adapters.

    Every check runs even when an earlier one fails, so that all problems are shown at once.
    """
    inspection = _Inspection(config, strict=False)
    inspection.all(required_splits(config), {})
    return inspection.findings


def check_serving(config: Config, adapter: str | None) -> None:
    """Check what answering needs before weights are loaded: device, model, and the adapter if there is one."""
    check_device(config.model)
    model = skeleton(config.model)
    if adapter is not None:
        _adapter(config, model, "adapter", adapter)


class _Inspection:
    """Runs checks one by one. `strict` lets the first error out; otherwise errors become findings."""

    def __init__(self, config: Config, *, strict: bool) -> None:
        self.config, self._strict = config, strict
        self.findings: list[Finding] = []

    def _attempt(self, what: str, check: Callable[[], tuple[T, str]]) -> T | None:
        try:
            value, seen = check()
        except GraspError as error:
            if self._strict:
                raise
            self.findings.append(Finding(what, "", error))
            return None
        self.findings.append(Finding(what, seen))
        return value

    def all(self, needs: Sequence[str], extra: Mapping[str, str]) -> Checked:
        config = self.config
        self._attempt("device", lambda: (None, check_device(config.model)))
        if config.export.merged_model:
            self._attempt("export", lambda: _export(config))
        tasks = self._attempt("prompts", lambda: _tasks(config))
        model = self._attempt("model", lambda: _model(config))
        tokenizer = self._attempt("tokenizer", lambda: _tokenizer(config))
        examples = self._data(needs)
        warnings = self._attempt("leakage", lambda: _leakage(config, examples)) or ()
        encoded = self._lengths(examples, tasks, tokenizer)
        adapters = self._adapters(model, extra)
        sides = {
            side: {n.partition(".")[2]: found for n, found in examples.items() if n.startswith(f"{side}.")}
            for side in ("source", "target")
        }
        return Checked(Splits(**sides), encoded, model or nn.Identity(), adapters, tuple(warnings))

    def _data(self, needs: Sequence[str]) -> Examples:
        examples: Examples = {}
        names = [f"{side}.{split}" for side in ("source", "target") for split in SplitFiles.model_fields]
        for name in names:
            side, split = name.split(".")
            if getattr(getattr(self.config.data, side), split) is None and name not in needs:
                continue
            found = self._attempt(f"data.{name}", partial(_split, self.config, name))
            if found is not None:
                examples[name] = found
        return examples

    def _lengths(self, examples: Examples, tasks: tuple[Task, Task] | None, tokenizer: Any) -> dict[str, EncodedSet]:
        if tasks is None or tokenizer is None:
            return {}
        encoded = {}
        for name, found in examples.items():
            task = tasks[0] if name.startswith("target") else tasks[1]
            tokens = self._attempt(f"lengths {name}", partial(_encoded, self.config, name, found, task, tokenizer))
            if tokens is not None:
                encoded[name] = tokens
        return encoded

    def _adapters(self, model: nn.Module | None, extra: Mapping[str, str]) -> dict[str, AdapterFactors]:
        if model is None:
            return {}
        merged = _given_adapters(self.config)
        adapters = {}
        for role, given in {**merged, **extra}.items():
            factors = self._attempt(f"adapter {role}", partial(_adapter, self.config, model, role, given))
            if factors is not None:
                adapters[role] = factors
        if adapters.keys() >= merged.keys():
            self._attempt("merge", lambda: _merge(self.config, model, adapters))
        return adapters


def _given_adapters(config: Config) -> dict[str, str]:
    named = {"source": config.adapters.source, "target": config.adapters.target}
    named |= {f"other{i + 1}": path for i, path in enumerate(config.adapters.others)}
    return {role: path for role, path in named.items() if path is not None}


def _export(config: Config) -> tuple[None, str]:
    check_mergeable(config.model)
    return None, "adapter and merged model"


def _tasks(config: Config) -> tuple[tuple[Task, Task], str]:
    """Return the target's and the source's task; raises `ConfigError` for templates and an answer without room."""
    task = config.task
    if task.max_new_tokens >= task.max_length:
        raise ConfigError(
            f"task.max_new_tokens: {task.max_new_tokens} new tokens leave no room for a prompt in task.max_length="
            f"{task.max_length} tokens. Lower the one or raise the other."
        )
    target = build_task(task.name, task.language, task.prompt, task.answer_prefix)
    uses_source = config.data.source.train is not None or config.data.source.dev is not None
    source = build_task(task.name, task.source_language, task.source_prompt) if uses_source else target
    return (target, source), f"{task.name}, {task.language}"


def _model(config: Config) -> tuple[nn.Module, str]:
    model = skeleton(config.model)
    shapes = module_shapes(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    fresh = _fresh_modules(config, model)
    trained = f", new adapters attach to {len(fresh)} modules" if fresh else ""
    return model, f"{type(model).__name__}, {size / 1e6:.1f}M parameters, {len(shapes)} linear modules{trained}"


def _fresh_modules(config: Config, model: nn.Module) -> list[str]:
    """Return the modules of adapters that are trained here; none when both are given."""
    if config.adapters.source is not None and config.adapters.target is not None:
        return []
    return resolve_target_modules(model, config.lora.target_modules)


def _tokenizer(config: Config) -> tuple[Any, str]:
    tokenizer = load_tokenizer(config.model)
    return tokenizer, f"{len(tokenizer)} tokens"


def _split(config: Config, name: str) -> tuple[list[Example], str]:
    require_splits(config, [name])
    side, split = name.split(".")
    examples = load_examples(getattr(getattr(config.data, side), split), config.task.name, config.data.fields)
    if name == "target.micro_dev":
        check_micro_dev(examples, config.data.micro_dev_size)
    return examples, f"{len(examples)} examples"


def _leakage(config: Config, examples: Examples) -> tuple[list[str], str]:
    warnings = check_leakage(examples, config.data.allow_leakage)
    return warnings, "; ".join(warnings) or f"no text is in two of the {len(examples)} splits that were read"


def _encoded(
    config: Config, name: str, examples: Sequence[Example], task: Task, tokenizer: Any
) -> tuple[EncodedSet, str]:
    settings, kept = config.task, config.run.tokens
    encoded = encode_kept(kept, examples, task, tokenizer, settings.max_length)
    if name == "target.test":  # prompts leave room for the answer that is generated
        encode_prompts_kept(kept, examples, task, tokenizer, settings.max_length - settings.max_new_tokens)
    report = encoded.report
    return encoded, report.sentence(name, settings.max_length) or f"longest {report.longest} tokens, none cut"


def _adapter(config: Config, model: nn.Module, role: str, given: str) -> tuple[AdapterFactors, str]:
    factors = load_adapter(
        given, module_shapes(model), name=role, base_id=recorded_name(config.model),
        base_revision=config.model.revision, head=output_head(model),
        allow_other_base=config.adapters.allow_other_base,
    )  # fmt: skip
    ranks = sorted({int(factor.A.shape[0]) for factor in factors.modules.values()})
    shown = ", ".join(map(str, ranks))
    return factors, "; ".join([f"{factors.origin}: {len(factors.modules)} modules, rank {shown}", *factors.notices])


def _merge(config: Config, model: nn.Module, adapters: Mapping[str, AdapterFactors]) -> tuple[None, str]:
    """Check that the merge rule takes the ranks of the adapters, those that are still to be trained included."""
    fresh = dict.fromkeys(_fresh_modules(config, model), config.lora.r)
    roles = ["source", "target", *(f"other{i + 1}" for i in range(len(config.adapters.others)))]
    ranks = {
        role: {m: int(f.A.shape[0]) for m, f in adapters[role].modules.items()} if role in adapters else fresh
        for role in roles
    }
    for module in sorted({name for found in ranks.values() for name in found}):
        check_ranks(config.merge.rule, module, [(role, ranks[role][module]) for role in roles if module in ranks[role]])
    return None, f"{config.merge.rule} of {len(roles)} adapters"
