"""Options that several commands share, and how they become a configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from ..config import Config, TrackerName, load_config, setting_names, to_dict, to_yaml


def _settings(incomplete: str) -> list[str]:
    """Return the settings that begin so, for the shell's completion of --set."""
    return [f"{name}=" for name in setting_names() if name.startswith(incomplete)]


ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="section.key=value; may be repeated.", autocompletion=_settings),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results and errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in run.dir stopped.")]
GoOn = Annotated[bool, typer.Option("--resume", help="Only go on with a run that is there, never start one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]

ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Experiment tracker: {', '.join(get_args(TrackerName))}; may be repeated.",
        autocompletion=lambda: list(get_args(TrackerName)),
    ),
]
BenchRecord = Annotated[
    Path | None,
    typer.Option(help="With --dry-run: predict seconds from this record of `bench`, not from a measurement."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan of a whole run only.")]
ScoredAdapter = Annotated[str | None, typer.Option(help="Score this PEFT folder alone instead of the run's systems.")]
AnsweringAdapter = Annotated[
    str | None, typer.Option(help="PEFT folder or hub id; without one the bare base model answers.")
]
Inputs = Annotated[list[str], typer.Argument(help="JSONL, CSV, TSV, Parquet, SQuAD JSON, or hf:NAME[:CONFIG]:SPLIT.")]
Sizes = Annotated[str, typer.Option(help="target, source-qa, source-summarization, or train=50,dev=50,...")]


def out(text: str) -> None:
    """Print a line of results on standard output."""
    sys.stdout.write(text + "\n")


def read_config(file: Path | None, sets: list[str] | None, report_to: list[str] | None = None) -> Config:
    """Return the resolved configuration: the file, the --set pairs, the --report-to trackers."""
    return load_config(file, settings(sets, report_to))


def settings(sets: list[str] | None, report_to: list[str] | None) -> list[str]:
    """Return the --set pairs with that of the --report-to trackers, if any."""
    return [*(sets or ()), *([f"run.report_to=[{','.join(report_to)}]"] if report_to else ())]


def shown(config: Config, wanted: bool, as_json: bool) -> bool:
    """Print the resolved configuration when that is what was asked for."""
    if wanted:
        out(json.dumps(to_dict(config), indent=2, ensure_ascii=False) if as_json else to_yaml(config).rstrip())
    return wanted


def command_line() -> list[str]:
    """Return the command line for the manifest, the program by its name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
