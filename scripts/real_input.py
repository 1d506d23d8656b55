"""Run the whole method on real data: two tasks, two target languages, several seeds, side by side on one device.

    python scripts/real_input.py run --backbone DIR --data DIR --out DIR --records FILE [--seeds 42 1337] [--jobs 6]
    python scripts/real_input.py page --records benchmarks/real/records.json --out docs/results-real.md

`run` trains one source adapter per task, then calls `grasp-lora run` once per cell and seed, and gathers what the run
folders hold into one file of records: scores, ratios, cost and provenance, no text of the data. A cell that is in the
records is not run again, and one that was interrupted goes on. `page` renders the records.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from grasp_lora.metrics.bootstrap import paired_bootstrap

TASKS = {"qa": "qa", "title": "summarization"}
LANGUAGES = ("ar", "zh")
COMMON = Path(__file__).resolve().parent.parent / "benchmarks" / "real" / "common.yaml"
ORIGIN = (
    "Made by `python scripts/real_input.py page` from `benchmarks/real/records.json`, which "
    "`python scripts/real_input.py run` wrote. Do not edit."
)
SYSTEMS = {
    "zero_shot": "zero shot", "source": "source adapter only", "target": "target adapter only",
    "sequential": "target fine-tuned from source", "merged": "merged, not pruned, fine-tuned", "grasp": "GRASP",
}  # fmt: skip


def grasp(command: Sequence[str], log: Path, sets: Sequence[str]) -> float:
    """Call one command of the package and return its seconds; raises on failure with the end of its log."""
    words = [sys.executable, "-m", "grasp_lora", *command, "--config", str(COMMON)]
    words += [word for item in sets for word in ("--set", item)]
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{log.name}: exit {done.returncode}: {log.read_text(encoding='utf-8')[-1500:]}")
    return time.perf_counter() - start


def data_sets(data: Path, folder: str, language: str, side: str) -> list[str]:
    """Return the settings that name one language's files."""
    splits = ("train", "dev") if side == "source" else ("train", "dev", "micro_dev", "test")
    return [f"data.{side}.{split}={data / folder / language / f'{split}.jsonl'}" for split in splits]


def source_train(args: argparse.Namespace, folder: str) -> Path:
    """Return the source's training file, cut to its first `--source-examples` lines where that is asked for."""
    whole: Path = args.data / folder / "en" / "train.jsonl"
    if args.source_examples is None:
        return whole
    cut: Path = args.out / f"source-{folder}-{args.source_examples}.jsonl"
    with whole.open(encoding="utf-8") as lines:
        cut.write_text("".join(itertools.islice(lines, args.source_examples)), encoding="utf-8")
    return cut


def train_source(args: argparse.Namespace, folder: str) -> float | None:
    """Train the task's source adapter once, with seed 42; None when it is there."""
    run = args.out / f"source-{folder}"
    if (run / "stages" / "source_adapter" / "result.json").exists():
        return None
    sets = [f"model.name_or_path={args.backbone}", f"task.name={TASKS[folder]}", "task.language=en", f"run.dir={run}"]
    # The target files are not used here, but a run's configuration names them.
    sets += data_sets(args.data, folder, "en", "source") + data_sets(args.data, folder, "ar", "target")
    sets += [f"data.source.train={source_train(args, folder)}"]
    return grasp(["train-adapter", "--role", "source"], args.out / "logs" / f"source-{folder}.log", [*sets, *args.set])


def run_cell(args: argparse.Namespace, folder: str, language: str, seed: int) -> dict[str, Any]:
    """Run one cell with one seed and return its record; a failure is recorded, not fatal."""
    name = f"{folder}-{language}-{seed}"
    run = args.out / name
    adapter = args.out / f"source-{folder}" / "stages" / "source_adapter" / "adapter"
    sets = [
        f"model.name_or_path={args.backbone}", f"task.name={TASKS[folder]}", f"task.language={language}",
        f"seed={seed}", f"run.dir={run}", f"adapters.source={adapter}",
    ]  # fmt: skip
    sets += data_sets(args.data, folder, language, "target")
    seen = len(source_train(args, folder).read_text(encoding="utf-8").splitlines())
    record: dict[str, Any] = {"task": folder, "language": language, "seed": seed, "source_examples": seen}
    try:
        go_on = ["--resume"] if run.exists() else []
        record["seconds"] = round(grasp(["run", *go_on], args.out / "logs" / f"{name}.log", [*sets, *args.set]), 1)
    except RuntimeError as error:
        return record | {"error": str(error)}
    record["results"] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    record["results"]["search"].pop("estimate", None)  # the whole curve: long, and shown by the run's report
    record["manifest"] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    record["losses"] = {name: example_losses(run, name) for name in record["results"]["systems"]}
    return record


def example_losses(run: Path, system: str) -> list[float]:
    """Return the test loss of every example, from which systems are compared in pairs."""
    lines = (run / "stages" / f"evaluate_{system}" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [round(json.loads(line)["loss"], 5) for line in lines]


def tune(args: argparse.Namespace) -> None:
    """Print the target adapter's best dev loss for several LoRA alphas and learning rates, seed 42."""
    choices = [(a, r, f, c) for a in args.alphas for r in args.rates for f in TASKS for c in LANGUAGES]

    def best(choice: tuple[float, float, str, str]) -> tuple[float, int]:
        alpha, rate, folder, language = choice
        run = args.out / f"tune-{folder}-{language}-{alpha:g}-{rate:g}"
        sets = [f"model.name_or_path={args.backbone}", f"task.name={TASKS[folder]}", f"task.language={language}"]
        sets += [f"lora.alpha={alpha}", f"train_target.lr={rate}", f"run.dir={run}"]
        sets += data_sets(args.data, folder, "en", "source") + data_sets(args.data, folder, language, "target")
        grasp(["train-adapter", "--role", "target"], args.out / "logs" / f"{run.name}.log", [*sets, *args.set])
        result = json.loads((run / "stages" / "target_adapter" / "result.json").read_text(encoding="utf-8"))
        return min(result["outcome"]["dev_losses"]), result["outcome"]["best_epoch"]

    with ThreadPoolExecutor(args.jobs) as pool:
        for choice, (loss, epoch) in zip(choices, pool.map(best, choices), strict=True):
            print(
                "alpha {:g} lr {:g} {} {}:".format(*choice), f"best dev {loss:.3f} after epoch {epoch + 1}", flush=True
            )


def write_records(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Write what is finished so far, in a fixed order, and say which run was the last."""
    ordered = sorted(records, key=lambda r: (r["task"], r["language"], r["seed"]))
    gathered = {"jobs": args.jobs, "runs": ordered}
    args.records.write_text(json.dumps(gathered, indent=1), encoding="utf-8")
    last = records[-1]
    print(last["task"], last["language"], last["seed"], last.get("error") or f"{last['seconds']} s", flush=True)


def run_all(args: argparse.Namespace) -> None:
    """Run everything; the records grow with every run that ends."""
    args.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.records.read_text(encoding="utf-8"))["runs"] if args.records.exists() else []
    records = [record for record in known if "results" in record]
    there = {(r["task"], r["language"], r["seed"]) for r in records}
    with ThreadPoolExecutor(args.jobs) as pool:
        seconds = dict(zip(args.tasks, pool.map(lambda folder: train_source(args, folder), args.tasks), strict=True))
        print("source adapters, seconds:", seconds, flush=True)
        cells = [(folder, language, seed) for seed in args.seeds for folder in args.tasks for language in LANGUAGES]
        pending = [pool.submit(run_cell, args, *cell) for cell in cells if cell not in there]
        for finished in as_completed(pending):
            records.append(finished.result())
            write_records(args, records)


# --- the page ---------------------------------------------------------------------------------------------------


def value(record: dict[str, Any], system: str, score: str) -> float | None:
    """Return one score of one run, None where it was not computed."""
    rows = record["results"]["systems"].get(system, {"scores": []})["scores"]
    return next((row["value"] for row in rows if row["name"] == score), None)


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean +- standard deviation over seeds (the deviation only for two or more)."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def cell_table(records: Sequence[dict[str, Any]], scores: Sequence[str]) -> list[str]:
    """Return the table of one cell: systems by scores, mean over seeds."""
    lines = [f"| system | {' | '.join(scores)} |", "| --- |" + " --- |" * len(scores)]
    for system, label in SYSTEMS.items():
        cells = []
        for score in scores:
            found = [v for r in records if (v := value(r, system, score)) is not None]
            cells.append(spread(found, 3 if score == "loss" else 1) if found else "-")
        if set(cells) == {"-"}:  # not among the rivals of these runs
            continue
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def ratio_line(records: Sequence[dict[str, Any]]) -> str:
    """Return what the controller learned in each seed, with its interval and what it cost."""
    shown = []
    for record in records:
        low, high = record["results"]["interval"] or (None, None)
        interval = f" [{low:.2f}, {high:.2f}]" if low is not None else ""
        results, search = record["results"], record["results"]["search"]
        strength = f", strength {search['point']['strength']:.2f}"
        spent = f"after {search['evaluations']} evaluations in {search['outcome']['steps']} steps"
        why = f" ({search['stop_reason']})" if search["stop_reason"] else ""
        shown.append(f"ratio {results['p_star']:.2f}{interval}{strength}, {spent}{why}")
    return "Learned (90 % interval): " + "; ".join(shown) + "."


def pair_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return GRASP's loss less that of every other system on the same examples, seeds pooled, with its interval."""
    lines = []
    for system in [name for name in SYSTEMS if name != "grasp" and name in records[0]["losses"]]:
        pairs = [(r["losses"]["grasp"], r["losses"][system]) for r in records]
        ours, theirs = ([x for pair in pairs for x in pair[side]] for side in (0, 1))
        found = paired_bootstrap(ours, theirs)
        low, high = found.interval
        verdict = "lower" if high < 0 else "higher" if low > 0 else "no difference beyond the noise"
        lines.append(f"- {SYSTEMS[system]}: {found.difference:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}")
    return lines


def page(args: argparse.Namespace) -> None:
    """Render the records as a Markdown page."""
    gathered = json.loads(args.records.read_text(encoding="utf-8"))
    good = [record for record in gathered["runs"] if "results" in record]
    manifest = good[0]["manifest"]
    versions, hardware = manifest["versions"], manifest["hardware"]
    device = hardware["gpus"][0]["name"] if hardware["gpus"] else hardware["cpu"]
    seeds = sorted({record["seed"] for record in good})
    setting = (
        f"Backbone: 22M-parameter English-Arabic-Chinese Llama. Device: {device}, {gathered['jobs']} at a time. "
        f"torch {versions['torch']}, transformers {versions['transformers']}, peft {versions['peft']}. "
        f"Seed {', '.join(map(str, seeds))}; mean ± standard deviation over seeds where there are several. Loss is "
        "nats per answer token, mean per example, then over the first n test examples; the other scores are of the "
        "first 100. Source adapters saw "
        + " and ".join(
            f"{k} {n} English examples" for k, n in sorted({(r["task"], r["source_examples"]) for r in good})
        )
        + "; 50 train, 50 dev and 16 micro-dev examples of the target."
    )
    lines = [
        "# Real input",
        "",
        ORIGIN,
        "",
        setting,
        "",
    ]
    for folder in TASKS:
        for language in LANGUAGES:
            cell = [r for r in good if (r["task"], r["language"]) == (folder, language)]
            if not cell:
                continue
            scores = [row["name"] for row in cell[0]["results"]["systems"]["grasp"]["scores"] if row["available"]]
            count = cell[0]["results"]["systems"]["grasp"]["examples"]
            lines += [f"## {folder}, {language} (n = {count} test examples)", "", *cell_table(cell, scores), ""]
            lines += [
                ratio_line(cell),
                "",
                "GRASP's loss less that of (95 % interval, paired bootstrap over examples):",
                "",
            ]
            lines += [*pair_lines(cell), ""]
    failed = [record for record in gathered["runs"] if "error" in record]
    lines += [f"Failed: {r['task']} {r['language']} {r['seed']}." for r in failed]
    args.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--records", type=Path, required=True)
    running.add_argument("--seeds", type=int, nargs="+", default=[42, 1337, 9001])
    running.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    running.add_argument("--source-examples", type=int, default=None, help="train sources on their first N examples")
    tuning = commands.add_parser("tune")
    for command in (running, tuning):
        command.add_argument("--backbone", type=Path, required=True)
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--jobs", type=int, default=6)
        command.add_argument("--set", action="append", default=[])
    tuning.add_argument("--alphas", type=float, nargs="+", default=[8.0, 16.0, 32.0])
    tuning.add_argument("--rates", type=float, nargs="+", default=[2e-3])
    rendering = commands.add_parser("page")
    rendering.add_argument("--records", type=Path, required=True)
    rendering.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    {"run": run_all, "tune": tune, "page": page}[args.command](args)


if __name__ == "__main__":
    main()
