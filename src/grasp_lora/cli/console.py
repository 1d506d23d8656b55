"""What the command line prints on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..adapters.point import MergePoint
from ..pipeline.accounts import score_cell
from ..pipeline.checks import Finding
from ..pipeline.costs import Prediction
from ..pipeline.plan import Plan
from ..pipeline.story import RunResult
from ..report import Report
from ..report.labels import system_label
from ..report.state import read_state
from ..report.watch import view, watch
from .tables import console as _console
from .tables import print_json
from .tables import table as _table


def score_rows(scores: Mapping[str, Any]) -> Table:
    """Return a table of systems and scores with their 95 % intervals."""
    names = list(dict.fromkeys(row["name"] for system in scores.values() for row in system["scores"]))
    rows = []
    for system, found in scores.items():
        by_name = {row["name"]: row for row in found["scores"]}
        rows.append([system_label(system), *(score_cell(by_name.get(name)) for name in names)])
    return _table(["system", *names], rows)


def show_scores(scores: Mapping[str, Any], as_json: bool) -> None:
    """Print scores of systems."""
    if as_json:
        print_json(scores)
        return
    _console().print(score_rows(scores))
    for row in next(iter(scores.values()))["scores"] if scores else ():
        _console().print(f"  {row['name']}: n={row['n']}, {row['signature'] if row['available'] else row['reason']}")


def show_result(result: RunResult, as_json: bool) -> None:
    """Print the end of a run: scores, ratio, cost, where the adapter lies and how to load it."""
    if as_json:
        print_json({"folder": str(result.folder), **result.results})
        return
    console = _console()
    results = result.results
    if results["systems"]:
        show_scores(results["systems"], False)
    show_search(results["search"], False)
    exported = results["export"]
    console.print(
        f"density {exported['density_before_summing']:.3f} of the unsummed factors, "
        f"{exported['density_after_summing']:.3f} after summing"
    )
    if exported["sparse"]:
        console.print(
            f"adapter {exported['adapter_bytes'] / 1e3:.0f} kB; compact factors "
            f"{exported['sparse_bytes'] / 1e3:.0f} kB ({result.folder / exported['sparse']})"
        )
    _show_cost(results["cost"])
    _show_deployment(results["deployment"])
    console.print(f"exported: {system_label(results['kept']['kept'])} ({results['kept']['reason']})", markup=False)
    _show_loading(result)


def _show_loading(result: RunResult) -> None:
    """Say where the adapter lies, and print lines of Python that load it."""
    from ..pipeline.models import DEMO
    from ..pipeline.opening import saved_config

    base, adapter = saved_config(result.folder).model.name_or_path, str(result.adapter)
    imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    if base == DEMO:  # the embedded backbone lies wherever the package is installed
        imports.insert(0, "from grasp_lora import demo_backbone")
    loaded = "demo_backbone()" if base == DEMO else repr(base)
    lines = [
        *imports,
        f"model = AutoModelForCausalLM.from_pretrained({loaded})",
        f"model = PeftModel.from_pretrained(model, {adapter!r})",
    ]
    here = "" if result.adapter.is_absolute() else ", from the folder you are in"
    _console().print(f"\nThe adapter lies in {adapter}. To load it{here}:\n", markup=False)
    for line in lines:
        _console().print(f"    {line}", markup=False, soft_wrap=True)


def _show_cost(cost: Mapping[str, Any]) -> None:
    rows = [
        [
            name,
            str(row["optimizer_steps"]),
            f"{row['trained_tokens']:,}",
            f"{row['forward_tokens']:,}",
            f"{row['token_passes']:,}",
        ]
        for name, row in cost.items()
    ]
    _console().print(_table(["cost", "steps", "tokens trained", "tokens forward", "token passes"], rows))


def _show_deployment(figures: Mapping[str, Any] | None) -> None:
    if figures is None:
        return
    energy = figures["energy_joules_per_token"]
    shown = f"{energy:.2f} J/token" if energy is not None else f"energy unknown ({figures['energy_reason']})"
    _console().print(
        f"served: loaded in {figures['load_seconds']:.2f} s, first token "
        f"{figures['first_token_seconds'] * 1e3:.0f} ms, "
        f"{figures['tokens_per_second']:.0f} tokens/s, peak {figures['peak_memory_bytes'] / 2**20:.0f} MiB "
        f"({figures['peak_memory_kind']}), {shown}"
    )


def show_search(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what the controller learned."""
    if as_json:
        print_json(found)
        return
    interval = found["interval"]
    shown = f", 90 % interval [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    console = _console()
    console.print(
        f"learned ratio [bold]{found['p_star']:.4f}[/]{shown} "
        f"({found['rounds']} rounds, {found['evaluations']} micro-dev evaluations)"
    )
    point = MergePoint.from_dict(found["point"])
    if point != MergePoint(point.ratio):
        console.print(f"the whole point: {point.describe()}", markup=False)
    if found["stop_reason"]:
        console.print(f"search ended: {found['stop_reason']}", markup=False)
    for diagnostic in found["diagnostics"]:
        _show_diagnostic(diagnostic)


def _show_diagnostic(found: Mapping[str, str]) -> None:
    """Print one finding: what was seen, why it matters, what to change."""
    console = _console()
    console.print(f"{found['severity']}: {found['seen']}", markup=False)
    console.print(f"    why it matters: {found['why']}", markup=False)
    console.print(f"    what to change: {found['advice']}", markup=False)


def show_findings(findings: Sequence[Finding], as_json: bool) -> None:
    """Print the findings of `validate`."""
    if as_json:
        rows = [{"what": f.what, "seen": f.seen, "error": str(f.error) if f.error else None} for f in findings]
        print_json(rows)
        return
    for finding in findings:
        mark = "[bold red]error[/]" if finding.error else "[green]ok[/]"
        _console().print(f"{mark} ", end="")
        _console().print(finding.sentence, markup=False)


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print what a run would do."""
    if as_json:
        print_json(dataclasses.asdict(plan))
        return
    found = plan.prediction.stages if plan.prediction else {}
    rows = [
        [
            s.name, str(s.steps), f"{s.trained:,}", f"{s.forward:,}", f"{s.token_passes:,}",
            _range(found[s.name]) if s.name in found else "-",
        ]
        for s in plan.stages
    ]  # fmt: skip
    console = _console()
    columns = ["stage", "optimizer steps", "examples trained", "examples forward", "token passes", "seconds"]
    console.print(_table(columns, rows))
    console.print(
        f"base model {plan.parameters / 1e6:,.1f}M parameters, {plan.trainable:,} trainable; "
        f"estimated peak memory {_memory(plan)}"
    )
    if plan.prediction:
        _show_prediction(plan.prediction)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", markup=False)


def _memory(plan: Plan) -> str:
    most, least = (f"{size / 2**30:.2f} GiB" for size in (plan.memory, plan.least_memory))
    if plan.least_memory == plan.memory:
        return most
    return f"at most {most}; passes shrink to what the GPU has free, down to {least} in all"


def _show_prediction(found: Prediction) -> None:
    if found.why_not is not None:
        _console().print(f"seconds are not predicted: {found.why_not}", markup=False)
    if not found.stages:
        return
    which = "all stages" if found.why_not is None else "the other stages"
    _console().print(
        f"{which} {_range(found.total)} s if none stops early, loading and deployment figures not counted "
        f"({found.source}; that took {found.measuring_s:.1f} s)",
        markup=False,
    )


def _range(seconds: tuple[float, float]) -> str:
    return " to ".join(f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in seconds)


def show_report(report: Report, as_json: bool) -> None:
    """Print the verdicts of a report and where it was written."""
    if as_json:
        print_json({"html": str(report.html), "markdown": str(report.markdown), **report.summary})
        return
    console = _console()
    for run in report.summary["runs"]:
        console.print(f"{run['run']}: {run['verdict']['sentence']}", markup=False)
        for line in run["missing"]:
            console.print(f"  missing: {line}", markup=False)
    if report.summary["comparison"] is not None:
        console.print(report.summary["comparison"], markup=False)
    console.print(f"{report.html}, {report.markdown}", markup=False)


def show_state(run: Path, as_json: bool) -> None:
    """Print where a run stands."""
    state = read_state(run)
    if as_json:
        print_json(state.to_dict())
        return
    _console().print(view(state, time.time()))


def follow(run: Path) -> None:
    """Show a run until it ends."""
    watch(run, _console())
