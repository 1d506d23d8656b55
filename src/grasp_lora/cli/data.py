"""Data preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Inputs, Overwrite, Sizes

app = typer.Typer()


@app.command("prepare")
def data_prepare(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder for the splits.")],
    task: Annotated[str, typer.Option(help="qa or summarization.")] = "qa",
    sizes: Sizes = "target",
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 42,
    field: Annotated[list[str] | None, typer.Option(help="Own column names, e.g. document=body.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw paper-sized splits by context or document, so that no text is in two of them."""
    from ..pipeline.preparing import prepare_splits
    from .facts import show_splits

    manifest = prepare_splits(inputs, task, sizes, out, seed, field or [], overwrite)
    show_splits(manifest, str(out), as_json)
