"""The controller without a model: simulated on landscapes, replayed over recorded rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Sets

app = typer.Typer()
Preset = Annotated[str | None, typer.Option(help="default or released; its own settings unless --set.")]


@app.command()
def simulate(
    landscape: Annotated[list[Path], typer.Option(help="Landscape file; may be repeated.")],
    preset: Preset = None,
    seeds: Annotated[int, typer.Option(help="Simulated micro-dev slices of each landscape.")] = 200,
    rounds: Annotated[int, typer.Option(help="Most rounds; R rounds may spend R (C + 1) evaluations.")] = 50,
    sets: Sets = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default one per core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a controller on landscape files, without a model: regret, evaluations, coverage of its interval."""
    from ..controller.simulate import simulate_files
    from .controller_output import show_simulation

    landscapes, report = simulate_files(
        landscape, preset=preset, sets=sets or (), seeds=seeds, rounds=rounds, workers=workers
    )
    show_simulation(landscapes, report, as_json)


@app.command()
def replay(
    history: Annotated[Path, typer.Argument(help="A run folder, its history.jsonl, or a JSON list of recorded runs.")],
    preset: Preset = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Do the controller's arithmetic again over recorded rounds; the samples are held fixed."""
    from ..controller.replay import replay_file
    from .controller_output import show_replay

    show_replay(replay_file(history, preset=preset, sets=sets or ()), as_json)
