"""Methods x tasks x languages x seeds in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    AsJson,
    ConfigFile,
    Overwrite,
    PrintConfig,
    Quiet,
    Resume,
    Sets,
    command_line,
    out,
    read_config,
    shown,
)

app = typer.Typer()
Methods = Annotated[str | None, typer.Option(help="Methods to compare, by name, with commas; default compare.methods.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="How many runs at once; default compare.jobs.")]


@app.command()
def compare(
    config: ConfigFile = None,
    sets: Sets = None,
    methods: Methods = None,
    jobs: Jobs = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
) -> None:
    """Compare GRASP with everything one would use instead: the same data, adapters and scores, costs counted."""
    from ..pipeline.comparison import compare as run_comparison
    from ..pipeline.comparison import compare_config
    from ..runs import make_progress
    from .tables import print_json

    chosen = [name.strip() for name in methods.split(",")] if methods is not None else None
    resolved = compare_config(read_config(config, sets), chosen, jobs)
    if shown(resolved, print_config, as_json):
        return
    result = run_comparison(resolved, make_progress(quiet), resume=resume, overwrite=overwrite, command=command_line())
    if as_json:
        print_json({"folder": str(result.folder), **result.records})
    else:
        out(result.tables)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
