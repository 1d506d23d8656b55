"""Paper-sized splits drawn from one or several inputs, so that no text is in two of them.

Documents are shuffled with a seed and dealt to the splits one after the other; all questions on one context
stay in one split, and a split that is full leaves the rest of its last context unused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import SplitFiles
from ..errors import ConfigError, DataError, nearest
from ..rng import numpy_generator
from .examples import Example, TaskName, load_examples, to_record, with_unique_ids
from .leakage import text_key
from .readers import HUB_PREFIX, read_bytes

PRESETS: dict[str, dict[str, int]] = {
    "target": {"train": 50, "dev": 50, "micro_dev": 16, "test": 100},
    "source-qa": {"train": 3030, "dev": 315, "test": 315},
    "source-summarization": {"train": 10000, "dev": 1000, "test": 1000},
}
"""Split sizes of the paper, in examples."""

MANIFEST = "manifest.json"
_KIND = "grasp-lora data"


def prepare(
    sources: Sequence[str],
    task: TaskName,
    sizes: str | Mapping[str, int],
    out_dir: str | Path,
    seed: int,
    fields: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Draw splits from `sources`, write them as JSON lines with a manifest, and return the manifest.

    `sizes` is a preset's name or the number of examples of each split. The same inputs, sizes and seed give
    the same bytes. The folder appears whole or not at all. Raises `DataError` for unusable inputs, too
    little data, a folder that exists (or, with `overwrite`, was not written by this function) or cannot be
    written; `ConfigError` for unknown split names and sizes.
    """
    wanted = _sizes(sizes)
    out = Path(out_dir)
    _check_out(out, overwrite)
    inputs, pool = _read(sources, task, fields)
    distinct = _distinct(pool)
    splits = draw(distinct, wanted, seed)
    manifest: dict[str, Any] = {
        "kind": _KIND,
        "version": _version(),
        "task": task,
        "drawn_by": "context" if task == "qa" else "document",
        "seed": seed,
        "inputs": inputs,
        "duplicates_removed": len(pool) - len(distinct),
        "unused": len(distinct) - sum(wanted.values()),
        "outputs": {},
    }
    _write(out, splits, manifest)
    return manifest


def draw(examples: Sequence[Example], sizes: Mapping[str, int], seed: int) -> dict[str, list[Example]]:
    """Return disjoint splits of exactly `sizes` examples; no document is in two of them.

    Raises `DataError` with the numbers when the examples do not suffice.
    """
    groups: dict[bytes, list[Example]] = {}
    for example in examples:
        groups.setdefault(text_key(example.document), []).append(example)
    documents = list(groups.values())
    order = numpy_generator(seed, "data-prepare").permutation(len(documents))
    dealt = iter([documents[position] for position in order])
    splits: dict[str, list[Example]] = {}
    for name, size in sizes.items():
        split: list[Example] = []
        while len(split) < size:
            group = next(dealt, None)
            if group is None:
                raise DataError(
                    f"too little data for the splits: {_listed(sizes)} need {sum(sizes.values())} examples; "
                    f"the inputs have {len(examples)} on {len(documents)} documents, and '{name}' got only "
                    f"{len(split)} of {size}. Give more inputs or smaller sizes."
                )
            split.extend(group[: size - len(split)])
        splits[name] = split
    return splits


def _sizes(sizes: str | Mapping[str, int]) -> dict[str, int]:
    if isinstance(sizes, str):
        if sizes not in PRESETS:
            raise ConfigError(
                f"sizes: '{sizes}' is no preset.{nearest(sizes, PRESETS)} Use one of {', '.join(PRESETS)}, "
                "or give the number of examples of each split."
            )
        return dict(PRESETS[sizes])
    known = list(SplitFiles.model_fields)
    for name, size in sizes.items():
        if name not in known:
            raise ConfigError(f"sizes: '{name}' is no split.{nearest(name, known)} Use {', '.join(known)}.")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"sizes: '{name}' must be a whole number of at least 1, got {size!r}.")
    if not sizes:
        raise ConfigError(f"sizes: no split is asked for. Give a number for one of {', '.join(known)}.")
    return dict(sizes)


def _read(
    sources: Sequence[str], task: TaskName, fields: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], list[Example]]:
    """Return what the manifest says of each input, and all examples."""
    if not sources:
        raise DataError("no input is given. Name at least one file or hf:NAME[:CONFIG]:SPLIT.")
    inputs: list[dict[str, Any]] = []
    pool: list[Example] = []
    for source in sources:
        examples = load_examples(source, task, fields)
        hub = source.startswith(HUB_PREFIX)
        content = _jsonl(examples) if hub else read_bytes(Path(source))
        # A path of this machine says nothing on another one; a hub name has no leading slash or dot.
        local = source.removeprefix(HUB_PREFIX).startswith(("/", ".", "~")) or not hub
        inputs.append(
            {
                "name": Path(source).name if local else source,
                "sha256": _sha256(content),
                "examples": len(examples),
            }
        )
        pool.extend(examples)
    return inputs, pool


def _distinct(pool: Iterable[Example]) -> list[Example]:
    """Return the examples without repeated (document, question) pairs, under ids that differ."""
    distinct: dict[tuple[bytes, bytes], Example] = {}
    for example in pool:
        distinct.setdefault((text_key(example.document), text_key(example.question or "")), example)
    return with_unique_ids(list(distinct.values()))


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise DataError(f"{out} exists already. Choose another folder, or ask for it to be overwritten.")
    try:
        kind = json.loads((out / MANIFEST).read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != _KIND:
        raise DataError(
            f"{out} was not written by `data prepare` (no {MANIFEST} of its kind), so it is not replaced. "
            "Choose another folder, or remove this one yourself."
        )


def _write(out: Path, splits: Mapping[str, Sequence[Example]], manifest: dict[str, Any]) -> None:
    """Write everything beside `out`, then put it in place; completes `manifest` with the outputs."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            for name, examples in splits.items():
                content = _jsonl(examples)
                (fresh / f"{name}.jsonl").write_bytes(content)
                manifest["outputs"][name] = {
                    "file": f"{name}.jsonl",
                    "sha256": _sha256(content),
                    "examples": len(examples),
                    "documents": len({text_key(example.document) for example in examples}),
                }
            text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
            (fresh / MANIFEST).write_text(text, encoding="utf-8")
            _replace(fresh, out, Path(scratch) / "old")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}). Nothing was changed.") from None


def _replace(fresh: Path, out: Path, old: Path) -> None:
    """Put `fresh` where `out` is; an old folder moves aside first and comes back if that fails."""
    existed = out.exists()
    if existed:
        out.rename(old)
    try:
        fresh.rename(out)
    except BaseException:  # Ctrl-C too: the old folder lies in a place that is cleared next
        if existed and not out.exists():
            old.rename(out)
        raise


def _jsonl(examples: Iterable[Example]) -> bytes:
    lines = [json.dumps(to_record(example), ensure_ascii=False) + "\n" for example in examples]
    return "".join(lines).encode("utf-8")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("grasp-lora")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
