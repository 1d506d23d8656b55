"""The command line: parse, build the configuration, make one pipeline call, print. No logic of the method is here."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import GraspError, exit_codes
from . import bench, compare, controller, data, report, setup, stages, story
from .options import out

app = typer.Typer(
    name="grasp-lora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Merge LoRA adapters, learn how much of them to prune in one run, and fine-tune at that ratio.",
    epilog=f"Exit codes: 0 done, {', '.join(f'{code} {name}' for code, name in sorted(exit_codes().items()))}.",
)
app.add_typer(setup.app)
app.add_typer(story.app)
app.add_typer(stages.app)
app.add_typer(report.app)
app.add_typer(controller.app)
app.add_typer(compare.app)
app.add_typer(bench.app)
app.add_typer(data.app, name="data", help="Prepare data.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out(f"grasp-lora {version('grasp-lora')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, anything else a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    error_console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except GraspError as error:
        error_console.print(f"[bold red]error:[/] {escape(str(error))}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        error_console.print("stopped at once; go on from the last checkpoint with --resume")
        raise SystemExit(130) from None
