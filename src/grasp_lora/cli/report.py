"""What a run did, and what it is doing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

app = typer.Typer()

Runs = Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")]
Page = Annotated[Path | None, typer.Option(help="HTML file; default RUN/report/report.html, or comparison.html.")]


@app.command()
def report(
    runs: Runs,
    out: Page = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    still: Annotated[
        bool, typer.Option("--still", help="Still figures only: a page without zoom, 2 MB smaller.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a page and its Markdown twin that say what one or more runs did and whether to trust it."""
    from ..report import write_report
    from .console import show_report

    written = write_report(runs, out, zoom=not still)
    show_report(written, as_json)
    if open_page:
        typer.launch(str(written.html.resolve()))


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, also one on another machine's disk.")],
    once: Annotated[bool, typer.Option("--once", help="Print where the run stands and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print it as JSON.")] = False,
) -> None:
    """Follow a run by reading its folder, until it ends."""
    from ..errors import ConfigError
    from .console import follow, show_state

    if as_json and not once:
        raise ConfigError("--json prints one state. Add --once, or leave --json out.")
    if once:
        show_state(run, as_json)
    else:
        follow(run)
