"""The controller on its own: simulated on landscapes, replayed over recorded rounds, and its settings varied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, ConfigFile, Overwrite, Quiet, Resume, Sets, command_line, read_config

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


@app.command()
def ablate(
    config: ConfigFile = None,
    sets: Sets = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="micro_dev_size, entropy_bonus, anchor, max_step, candidates, interval, importance: those wanted, "
            "separated by commas; default all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each value, from the configuration's on.")] = 1,
    finalize: Annotated[bool, typer.Option("--finalize", help="Also the final run, with dev and test loss.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the cells; default the run's with -ablate.")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Vary one setting of the search at a time, on adapters that are trained once."""
    from ..pipeline.ablate import Asked
    from ..pipeline.ablate import ablate as run_ablations
    from ..runs import make_progress
    from .controller_output import failed_code, show_ablations

    names = tuple(name.strip() for name in what.split(",")) if what is not None else ()
    found = run_ablations(
        read_config(config, sets), Asked(names, seeds, finalize, out), make_progress(quiet),
        resume=resume, overwrite=overwrite, command=command_line(),
    )  # fmt: skip
    show_ablations(found, as_json)
    code = failed_code(found)
    if code:
        raise typer.Exit(code)
