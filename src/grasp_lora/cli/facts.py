"""What the smaller commands print: facts line by line, a configuration to fill in, splits that were drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .tables import console, print_json, table


def show_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print a stage's result, one fact a line; what belongs to a fact stands below it, set in."""
    if as_json:
        print_json(facts)
        return
    for line in _lines(facts, ""):
        console().print(line, markup=False)


def _lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_words(value)}"


def _words(value: Any) -> str:
    """Return a value as a reader writes it: `none`, `yes`, 1.23457, or a list of these."""
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def show_template(written: Mapping[str, Any], as_json: bool) -> None:
    """Print where a configuration was written, what is to be filled in, and what comes next."""
    if as_json:
        print_json(written)
        return
    shown = console()
    shown.print(f"{written['config']} is written. To fill in, marked FILL:", markup=False)
    for name in written["fill_in"]:
        shown.print(f"  {name}", markup=False)
    shown.print(f"Then: grasp-lora validate --config {written['config']}", markup=False)


def show_splits(manifest: Mapping[str, Any], folder: str, as_json: bool) -> None:
    """Print the manifest of `data prepare`: the splits, what they were drawn from, and what was left over."""
    if as_json:
        print_json(manifest)
        return
    shown = console()
    drawn = manifest["outputs"]
    rows = [[name, str(made["examples"]), str(made["documents"]), made["file"]] for name, made in drawn.items()]
    shown.print(table(["split", "examples", f"{manifest['drawn_by']}s", "file"], rows))
    for read in manifest["inputs"]:
        shown.print(f"read {read['examples']} examples from {read['name']}", markup=False)
    shown.print(
        f"drawn by {manifest['drawn_by']} with seed {manifest['seed']}; {manifest['duplicates_removed']} duplicates "
        f"removed, {manifest['unused']} examples unused",
        markup=False,
    )
    shown.print(f"written to {folder}, with the hashes of all files in manifest.json", markup=False)
