"""The whole method in one command."""

from __future__ import annotations

import typer

from ..errors import ConfigError
from .options import (
    AsJson,
    BenchRecord,
    ConfigFile,
    DryRun,
    Overwrite,
    PrintConfig,
    Quiet,
    ReportTo,
    Resume,
    Sets,
    command_line,
    read_config,
    settings,
    shown,
)

app = typer.Typer()


@app.command()
def run(
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    bench_record: BenchRecord = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
) -> None:
    """Adapters, merge, search, final run, evaluation and export in one go."""
    from ..pipeline.prediction import predicted_plan
    from ..pipeline.story import run_pipeline
    from ..runs import make_progress
    from .console import show_plan, show_result

    resolved = read_config(config, sets, report_to)
    if shown(resolved, print_config, as_json):
        return
    if bench_record is not None and not dry_run:
        raise ConfigError("--bench-record predicts seconds. Use it with --dry-run.")
    if dry_run and resume:
        raise ConfigError("--resume goes on with a run; --dry-run plans a whole one. Give one of them.")
    if dry_run:
        show_plan(predicted_plan(resolved, bench_record), as_json)
        return
    result = run_pipeline(resolved, make_progress(quiet), resume=resume, overwrite=overwrite, command=command_line())
    show_result(result, as_json)


@app.command()
def demo(
    sets: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
) -> None:
    """`run` on the embedded backbone and data: the real thing on a laptop's CPU in minutes."""
    from ..pipeline.demo import demo_config, prepare_demo_data
    from ..pipeline.story import run_pipeline
    from ..runs import make_progress
    from .console import show_result

    resolved = demo_config(settings(sets, report_to))
    if shown(resolved, print_config, as_json):
        return
    prepare_demo_data(resolved)
    result = run_pipeline(resolved, make_progress(quiet), resume=resume, overwrite=overwrite, command=command_line())
    show_result(result, as_json)


@app.command()
def validate(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check configuration, files, adapters, leakage and lengths without training."""
    from ..pipeline.checks import validate as check
    from .console import show_findings

    findings = check(read_config(config, sets))
    show_findings(findings, as_json)
    errors = [finding.error for finding in findings if finding.error is not None]
    if errors:
        raise typer.Exit(errors[0].exit_code)
