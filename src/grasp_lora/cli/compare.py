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
Parts = Annotated[str | None, typer.Option(help="Parts of compare.parts to do, by name, with commas; default all.")]
TimeLimit = Annotated[
    float | None, typer.Option(min=0.0, help="Seconds after which no run is started any more; go on with --resume.")
]
TablesOnly = Annotated[bool, typer.Option("--tables-only", help="Run nothing: records and tables of what is there.")]
Methods = Annotated[str | None, typer.Option(help="Methods to compare, by name, with commas; default compare.methods.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="How many runs at once; default compare.jobs.")]


@app.command()
def compare(
    config: ConfigFile = None,
    sets: Sets = None,
    methods: Methods = None,
    jobs: Jobs = None,
    parts: Parts = None,
    time_limit: TimeLimit = None,
    tables_only: TablesOnly = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
) -> None:
    """Compare GRASP with everything one would use instead: the same data, adapters and scores, costs counted."""
    from ..pipeline.comparison import Asked, compare_config
    from ..pipeline.comparison import compare as run_comparison
    from ..runs import make_progress
    from .tables import print_json

    resolved = compare_config(read_config(config, sets), _names(methods), jobs, time_limit, _names(parts))
    if shown(resolved, print_config, as_json):
        return
    asked = Asked(resume=resume or tables_only, overwrite=overwrite, run=not tables_only)
    result = run_comparison(resolved, make_progress(quiet), asked, command=command_line())
    if as_json:
        parted = {"parts": dict(result.parts)} if result.parts else {}
        print_json({"folder": str(result.folder), **result.records, **parted})
    else:
        out(result.tables)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]
