"""Before the first run: a configuration to start from, and a look at the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, ConfigFile, Overwrite, Sets, read_config

app = typer.Typer()


@app.command()
def init(
    task: Annotated[str, typer.Option(help="qa or summarization.")] = "qa",
    language: Annotated[str, typer.Option(help="Target language code, such as ar.")] = "ar",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("grasp-lora.yaml"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration to fill in, with every setting and its default."""
    from ..pipeline.initial import write_template
    from .facts import show_template

    show_template(write_template(task, language, out, overwrite=overwrite), as_json)


@app.command()
def doctor(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Say what is installed, what the GPU can do, which extras are missing, and whether all is well."""
    from ..pipeline.doctor import examine
    from ..pipeline.opening import default_folder
    from .examination import show_examination

    facts, problems = examine(default_folder(read_config(config, sets)))
    show_examination(facts, as_json)
    if problems:
        raise typer.Exit(problems[0].exit_code)
