"""The stages as functions on what a user of Hugging Face libraries already has.

    work = setup(model, tokenizer, train=rows, dev=rows, micro_dev=rows, test=rows, config={"task": {"language": "ar"}})
    found = search(work, ["adapters/en", "adapters/ar"])
    final = finalize(work, ["adapters/en", "adapters/ar"], found)
    print(evaluate(work, final))
    export(work, final, "adapters/merged")

Examples are files (JSON lines, CSV, TSV, Parquet, SQuAD-format JSON), `datasets.Dataset` objects, or lists of dicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

from .adapters.discover import linear_modules
from .adapters.inject import carries_merge
from .adapters.peft_load import AdapterFactors, factors_hash
from .adapters.peft_save import save_adapter
from .adapters.point import MergePoint
from .baselines import alone
from .config import Config, SplitFiles, TrainingConfig, build_config
from .data import Example, check_leakage, check_micro_dev, examples_from_records, load_examples
from .errors import AdapterError, check_choice
from .pipeline.accounts import score_table
from .pipeline.adapters import TrainedAdapter, read_adapter
from .pipeline.adapters import train_adapter as _train_adapter
from .pipeline.evaluation import SystemScores, evaluate_system
from .pipeline.export import Exported, export_adapter, model_card
from .pipeline.finalize import FinalResult
from .pipeline.finalize import finalize as _finalize
from .pipeline.models import demo_backbone, fingerprint, freeze
from .pipeline.rivals import system_factors
from .pipeline.search import SearchResult
from .pipeline.search import search as _search
from .pipeline.stageio import StageIO
from .pipeline.story import RunResult, run_pipeline
from .runs import Progress
from .training.setup import Base, Setup

Rows: TypeAlias = str | Path | Iterable[Mapping[str, Any]]
AnyAdapter: TypeAlias = str | Path | AdapterFactors | TrainedAdapter

__all__ = [
    "Config", "Exported", "FinalResult", "MergePoint", "RunResult", "SearchResult", "Setup", "SystemScores",
    "TrainedAdapter", "demo_backbone", "evaluate", "export", "finalize", "run", "save", "score_table", "search",
    "setup", "train_adapter",
]  # fmt: skip


def setup(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    train: Rows | None = None,
    micro_dev: Rows | None = None,
    dev: Rows | None = None,
    test: Rows | None = None,
    source: Mapping[str, Rows] | None = None,
    config: Config | Mapping[str, Any] | None = None,
) -> Setup:
    """Return what the other functions work on: a model that is already loaded, and the examples of the target language.

    The model's weights are frozen (`requires_grad_(False)`); its code and modules stay untouched. `source` maps split
    names to examples of the source language, needed only to train a source adapter here. `config` is a `Config` or
    nested mappings of the settings that differ from the defaults. Raises `DataError` for unusable examples, a
    micro-dev larger than `data.micro_dev_size`, and text that is in two splits; `ConfigError` for settings;
    `AdapterError` for a model that carries adapters.
    """
    resolved = config if isinstance(config, Config) else build_config(config or {})
    _require_bare(model)
    given = {"train": train, "dev": dev, "micro_dev": micro_dev, "test": test}
    target = {name: _examples(rows, resolved, f"target.{name}") for name, rows in given.items() if rows is not None}
    sources = {name: _examples(rows, resolved, f"source.{name}") for name, rows in (source or {}).items()}
    if "micro_dev" in target:
        check_micro_dev(target["micro_dev"], resolved.data.micro_dev_size)
    named = {f"target.{name}": found for name, found in target.items()}
    check_leakage(named | {f"source.{name}": found for name, found in sources.items()}, resolved.data.allow_leakage)
    name = str(getattr(model, "name_or_path", "") or model.config.model_type)
    name = Path(name).name if Path(name).is_absolute() else name
    base = Base(freeze(model, resolved.model), tokenizer, name, fingerprint(str(model.name_or_path), model))
    return Setup(resolved, base, target, sources)


def _require_bare(model: Any) -> None:
    """Raise `AdapterError` for a model whose own passes are not those of the base model."""
    if carries_merge(model):
        raise AdapterError("this model carries merged adapters already. Call detach() of that merge first.")
    if isinstance(model, PeftModel):
        raise AdapterError(
            "the model carries a PEFT adapter. Give the bare base model: load it alone, or take it out with "
            "model.unload(); adapters are given as folders."
        )
    linear_modules(model)  # finds the layers that PEFT has put into a model that is not wrapped


def _examples(rows: Rows, config: Config, origin: str) -> list[Example]:
    if isinstance(rows, (str, Path)):
        return load_examples(str(rows), config.task.name, config.data.fields)
    return examples_from_records(rows, config.task.name, config.data.fields, origin)


def read_adapters(work: Setup, adapters: Sequence[AnyAdapter]) -> list[AdapterFactors]:
    """Return adapters, however they were given, as numbers under names of their own.

    Raises `AdapterError` for one that does not fit or is none.
    """
    if isinstance(adapters, (str, Path, AdapterFactors, TrainedAdapter)):
        raise AdapterError("adapters: one alone was given. Give a list of PEFT folders, hub ids or trained adapters.")
    out: list[AdapterFactors] = []
    for index, adapter in enumerate(adapters):
        found = _read(work, adapter, f"adapter{index + 1}")
        taken, name, count = {other.name for other in out}, found.name, 1
        while name in taken:  # two that were trained here for one language, say
            count += 1
            name = f"{found.name}{count}"
        out.append(replace(found, name=name, sha256=found.sha256 or factors_hash(found.modules)))
    return out


def _read(work: Setup, adapter: Any, name: str) -> AdapterFactors:
    if isinstance(adapter, TrainedAdapter):
        return adapter.factors
    if isinstance(adapter, AdapterFactors):
        return adapter
    if not isinstance(adapter, (str, Path)):
        raise AdapterError(
            f"adapters: a {type(adapter).__name__} is no adapter. Give a PEFT folder, a hub id or what train_adapter "
            "returned."
        )
    return read_adapter(work, str(adapter), name)


def _final(given: Any, what: str) -> Any:
    """Return the final run of a search that kept its adapter, and anything but a search as it is."""
    if not isinstance(given, SearchResult):
        return given
    if given.final is None:
        raise AdapterError(f"{what}: a search names a point and leaves no adapter. Call finalize with it first.")
    return given.final


def train_adapter(
    work: Setup, role: str = "target", *, start: AnyAdapter | None = None, progress: Progress | None = None
) -> TrainedAdapter:
    """Train a LoRA adapter on the target's (or `role="source"`: the source's) train split with `train_<role>` settings.

    With `start`, that adapter is fine-tuned further, which is the sequential rival of every merge.
    """
    check_choice("role", role, ("source", "target"))
    training: TrainingConfig = work.config.train_source if role == "source" else work.config.train_target
    begin = read_adapters(work, [start])[0] if start is not None else None
    return _train_adapter(work, role, training, StageIO(f"{role}_adapter", progress=progress), begin)


def search(work: Setup, adapters: Sequence[AnyAdapter], *, progress: Progress | None = None) -> SearchResult:
    """Learn the prune ratio of the merge of `adapters` (PEFT folders, hub ids or adapters trained here)."""
    return _search(work, read_adapters(work, adapters), StageIO("search", progress=progress))


def finalize(
    work: Setup,
    adapters: Sequence[AnyAdapter],
    where: SearchResult | MergePoint | float,
    *,
    progress: Progress | None = None,
) -> FinalResult:
    """Prune the merge of `adapters` at what a search found, a point, or a ratio (0 to 1), and fine-tune it.

    A search with `finalize.adapter=reuse` has trained its own adapter, which is returned as it is.
    """
    if isinstance(where, SearchResult):
        if where.final is not None:
            return where.final
        where = where.best
    return _finalize(work, read_adapters(work, adapters), where, StageIO("finalize", progress=progress))


def evaluate(
    work: Setup,
    system: FinalResult | SearchResult | AnyAdapter | None = None,
    *,
    split: str = "test",
    progress: Progress | None = None,
) -> SystemScores:
    """Score a final run, a single adapter, or (None) the bare base model on a split of the target."""
    check_choice("split", split, SplitFiles.model_fields)
    scored = _final(system, "evaluate")
    if scored is None:
        return evaluate_system(work, "zero_shot", {}, StageIO("evaluate", progress=progress), split)
    if isinstance(scored, FinalResult):
        factors = system_factors(scored.bank)
    else:
        factors = system_factors(alone(work, read_adapters(work, [scored])[0]))
    return evaluate_system(work, "system", factors, StageIO("evaluate", progress=progress), split)


def export(work: Setup, final: FinalResult | SearchResult, folder: str | Path, *, overwrite: bool = False) -> Exported:
    """Write `folder/adapter`, a plain PEFT folder that loads anywhere, and the sparse file of the unsummed factors."""
    final = _final(final, "export")
    if not isinstance(final, FinalResult):
        raise AdapterError(f"export: takes what finalize returned, got {type(final).__name__}; see also save.")
    card = model_card(work.base.name, {"pruned at": final.point.describe(), "merge rule": work.config.merge.rule}, "")
    return export_adapter(
        work.base, final.bank, Path(folder), card=card, sparse=work.config.export.sparse, overwrite=overwrite
    )


def save(work: Setup, adapter: TrainedAdapter, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write an adapter trained here as a plain PEFT folder; its scaling is folded into B."""
    if not isinstance(adapter, TrainedAdapter):
        raise AdapterError(
            f"save: takes what train_adapter returned, got {type(adapter).__name__}. `export` writes others."
        )
    modules = adapter.factors.modules
    pairs = {module: (factor.A, factor.scaling * factor.B) for module, factor in modules.items()}
    save_adapter(folder, pairs, base_model=work.base.name, revision=work.base.revision, overwrite=overwrite)
    return Path(folder)


def run(
    config: Config | Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run the whole method from a configuration, with a run folder, as `grasp-lora run` does."""
    resolved = config if isinstance(config, Config) else build_config(config)
    return run_pipeline(resolved, progress, resume=resume, overwrite=overwrite)
