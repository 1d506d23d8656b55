"""What things cost on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .options import AsJson, Quiet, Sets
from .tables import console, print_json, table

app = typer.Typer()


@app.command()
def bench(
    workload: Annotated[
        list[str] | None,
        typer.Option(help="mlqa-8b, xlsum-8b (GPU), mlqa-cpu, xlsum-cpu (default both), demo; may be repeated."),
    ] = None,
    sets: Sets = None,
    repeats: Annotated[int, typer.Option(help="Times per piece that is measured alone.")] = 5,
    quick: Annotated[bool, typer.Option(help="A few epochs of each stage; the whole run is extrapolated.")] = False,
    scaling: Annotated[bool, typer.Option(help="Also how rounds and steps grow with their sizes.")] = False,
    variants: Annotated[bool, typer.Option(help="Also every piece with one switch of `speed` off at a time.")] = False,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Every piece with these settings beside the others: 'section.key=value ...'; may be repeated."
        ),
    ] = None,
    max_memory_gib: Annotated[
        float | None, typer.Option(help="Cap what the GPU's allocator may hold, below what the GPU has.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The record's file, a new one; default one in runs/bench.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time steps, rounds, masks, updates, generation and a whole run against the floor of a measured matrix rate."""
    from ..pipeline.bench.record import Request
    from ..pipeline.bench.record import bench as measure
    from ..runs import make_progress

    names = workload or ["mlqa-cpu", "xlsum-cpu"]
    request = Request(names, sets or (), repeats, quick, scaling, variants, variant or (), max_memory_gib, out)
    record, path = measure(request, make_progress(quiet))
    show_record(record, path, as_json)


def show_record(record: Mapping[str, Any], path: Path, as_json: bool) -> None:
    """Print a record of `bench` and where it lies."""
    if as_json:
        print_json({"file": str(path), **record})
        return
    for result in record["results"]:
        console().print(f"[bold]{escape(result['workload'])}[/]", end=" ")
        (_show_rounds if "gain" in result else _show_workload)(result)
    console().print(f"record: {path}", markup=False)


def _show_workload(result: Mapping[str, Any]) -> None:
    shown, ceilings = console(), result["ceilings"]
    shown.print(
        f"{result['body_parameters'] / 1e6:,.1f}M body parameters, {result['dtype']}; matrix product "
        f"{ceilings['flops_per_s'] / 1e12:.3f} TFLOP/s, copy {ceilings['bytes_per_s'] / 1e9:,.0f} GB/s",
        markup=False,
    )
    spread = ("median_s", "mean_s", "min_s", "max_s")
    rows = [
        [name, *(f"{row[key]:.5f}" for key in spread), str(row["repeats"]), f"{sum(row['warm_up_s']):.2f}"]
        for name, row in result["pieces"].items()
    ]
    shown.print(table(["piece", "median s", "mean", "min", "max", "times", "warm-up s"], rows))
    _show_roofline(result["roofline"])
    _show_run(result)
    _show_variants(result.get("variants", ()))
    if result.get("scaling"):
        grown = [
            [f"{row['piece']}, {row['what']}", f"{row['value']:g}", f"{row['tokens']:,}", f"{row['median_s']:.5f}"]
            for row in result["scaling"]
        ]
        shown.print(table(["cost against", "value", "tokens", "median s"], grown))
    for text in result["notices"]:
        shown.print(f"note: {text}", markup=False)


def _show_roofline(rows: Any) -> None:
    shown = [
        [
            row["piece"], f"{row['flops'] / 1e9:,.1f}", f"{row['bytes'] / 1e9:.2f}", f"{row['flops_s']:.4f}",
            f"{row['bytes_s']:.4f}", f"{row['floor_s']:.4f}", f"{row['measured_s']:.4f}", f"{row['ratio']:.2f}",
            f"{row['of_roofline']:.2f}", row["bound_by"],
        ]
        for row in rows
    ]  # fmt: skip
    columns = ["where time goes", "GFLOP", "GB", "s of FLOP", "s of bytes", "floor s", "measured s", "x floor",
               "x roofline", "bound by"]  # fmt: skip
    console().print(table(columns, shown))


def _show_run(result: Mapping[str, Any]) -> None:
    run, shown, answers = result["run"], console(), result["generation"]
    how = "extrapolated from a few epochs" if run["extrapolated"] else "timed as a whole"
    shown.print(
        f"whole run ({run['steps']} steps, {run['rounds']} rounds, {run['updates']} updates; {how}): "
        f"{run['seconds']:.2f} s; floor {run['floor_s']:.2f} s, ratio {run['ratio']:.2f}; of it opening look "
        f"{run['opening_s']:.2f} s, compile, capture and warm-up "
        f"{_warm_up(run['compile_capture_warm_up_s'], ' s')}; masks, policy and commit "
        f"{run['masks_policy_commit_share']:.2%}",
        markup=False,
    )
    shown.print(_generation(answers), markup=False)
    peaks = result["peak_memory"]
    kind = next(iter(peaks.values()))["kind"]
    held = ", ".join(f"{name} {_gib(peak)}" for name, peak in peaks.items())
    estimate = result["peak_memory_estimate_bytes"] / 2**30
    shown.print(f"peak memory ({kind}): {held}; estimated for the stages {estimate:.2f} GiB", markup=False)


def _warm_up(seconds: float, unit: str = "") -> str:
    """Return by how much first epochs took longer than later ones, where they did."""
    return f"{seconds:.2f}{unit}" if seconds > 0 else "below noise"


def _generation(answers: Mapping[str, Any]) -> str:
    if "out_of_memory" in answers:
        return f"generation: a batch does not fit ({answers['out_of_memory']})"
    note = f"; {answers['note']}" if answers["note"] else ""
    return (
        f"generation {answers['per_new_token_and_example_s']:.6f} s per new token and example (with the first call's "
        f"capture {answers['with_first_call_s']:.6f}, without adapters {answers['without_adapters_s']:.6f}, "
        f"transformers' own loop {answers['transformers_loop_s']:.6f}); the first "
        f"{answers['agreeing_tokens']:.1f} tokens as that loop's, on the mean{note}"
    )


def _gib(peak: Mapping[str, Any]) -> str:
    if peak["bytes"] is None:
        return "unknown"
    reserved = f" ({peak['reserved_bytes'] / 2**30:.2f} reserved)" if peak["reserved_bytes"] else ""
    return f"{peak['bytes'] / 2**30:.2f} GiB{reserved}"


def _show_variants(rows: Any) -> None:
    if not rows:
        return
    pieces = list(rows[0]["gained"])
    shown = [
        [row["variant"], *(f"{row['seconds'][p]:.5f} ({row['gained'][p]:.2f})" for p in pieces),
         _warm_up(row["seconds"]["warm_up"])]
        for row in rows
    ]  # fmt: skip
    console().print(table(["seconds (times as configured)", *pieces, "warm-up s"], shown))


def _show_rounds(result: Mapping[str, Any]) -> None:
    shown, ones = console(), {"one_pass": 1.0}
    gains, used = ones | result["gain"], ones | result["gain_cpu"]
    shown.print(
        f"baseline and {result['candidates']} candidates on {result['examples']} examples, {result['tokens']:,} tokens",
        markup=False,
    )
    rows = [
        [name, *(f"{times[key]:.4f}" for key in ("median_s", "min_s", "max_s")), f"{gains[name]:.2f}",
         f"{used[name]:.2f}"]
        for name, times in result["seconds"].items()
    ]  # fmt: skip
    shown.print(table(["way", "median s", "min", "max", "times one pass", "by processor time"], rows))
    shown.print(f"largest difference of a loss {result['largest_difference']:.2e} nats", markup=False)
