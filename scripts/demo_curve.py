"""Measure how the demo's losses depend on the prune ratio, against its rivals; a grid of full runs, losses only.

    python scripts/demo_curve.py measure --records benchmarks/demo
    python scripts/demo_curve.py table --records benchmarks/demo
    python scripts/demo_curve.py gather --records benchmarks/demo runs/demo-42 runs/demo-1337 runs/demo-9001

`measure` trains, for each seed (which also draws the data), the adapters and rivals of `grasp-lora demo` with the
demo's settings, and one final run per ratio. The target adapter is also trained on for another final run by itself:
what the merge adds beyond longer training. A run's own source adapter, which is the same to the bit, saves time:
`--set adapters.source=runs/demo-{seed}/stages/source_adapter/adapter`. `table` prints the mean over seeds as Markdown.
`gather` keeps scores, ratios and provenance of finished `grasp-lora demo` runs, and prints their mean.

The records are one file per seed, `curve-SEED.json` and `run-SEED.json`, so seeds can be measured side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from real_input import cell_table, ratio_line
from real_input import spread as mean_and_deviation
from transformers import AutoModelForCausalLM, AutoTokenizer

from grasp_lora import demo_backbone, evaluate, finalize, setup, train_adapter
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.peft_load import AdapterFactors
from grasp_lora.api import Setup
from grasp_lora.data.world import Language, demo_splits
from grasp_lora.pipeline.adapters import read_adapter
from grasp_lora.pipeline.demo import demo_config
from grasp_lora.runs import build_manifest, write_json_atomic
from grasp_lora.training import MaskSelector

SEEDS = (42, 1337, 9001)
RATIOS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SPLITS = ("dev", "test")
LOSSES_ONLY = ("evaluate.metrics=[loss]", "evaluate.bootstrap=1")
SYSTEMS = {
    "zero_shot": "zero shot", "source": "source adapter only", "target": "target adapter only",
    "target_longer": "target adapter, trained on for another final run", "sequential": "target fine-tuned from source",
}  # fmt: skip
Losses = dict[str, float]


def demo_work(seed: int, sets: Sequence[str], backbone: tuple[Any, Any]) -> Setup:
    """Return the demo's setup with its settings changed by `sets`; losses are all it will be asked for."""
    config = demo_config([*(item.replace("{seed}", str(seed)) for item in sets), *LOSSES_ONLY, f"seed={seed}"])
    splits = demo_splits(config.task.name, cast(Language, config.task.language), seed)
    source = {name: splits[f"source_{name}"] for name in ("train", "dev")}
    return setup(
        *backbone, train=splits["train"], dev=splits["dev"], micro_dev=splits["micro_dev"], test=splits["test"],
        source=source, config=config,
    )  # fmt: skip


def losses(work: Setup, system: Any) -> Losses:
    """Return a system's mean loss (nats per answer token) on dev and test."""
    found = {split: evaluate(work, system, split=split).losses for split in SPLITS}
    return {split: round(statistics.fmean(values), 5) for split, values in found.items()}


def right_after(work: Setup, adapters: Sequence[AdapterFactors], ratios: Sequence[float]) -> list[Losses]:
    """Return the losses of the merge pruned at each ratio, before any further training."""
    bank = work.bank(adapters)
    with Injection(work.base.model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        ranking = MaskSelector(bank, injection, work.config.prune, work.evaluator(attached, "micro_dev")).ranking()
        probes = {split: work.evaluator(attached, split) for split in SPLITS}
        return [
            {s: round(float(probe.candidate_losses([ranking.kept(ratio)]).mean()), 5) for s, probe in probes.items()}
            for ratio in ratios
        ]


def measure_seed(work: Setup, ratios: Sequence[float], note: Callable[[str], None]) -> dict[str, Any]:
    """Return one seed's losses: every rival, and the merge at each ratio before and after its final run."""
    given = work.config.adapters.source
    source = read_adapter(work, given, "source") if given else train_adapter(work, "source").factors
    target = train_adapter(work, "target").factors
    note("adapters are there")
    systems = {
        "zero_shot": None,
        "source": source,
        "target": target,
        "target_longer": finalize(work, [target], 0.0),
        "sequential": train_adapter(work, "target", start=source),
    }
    row: dict[str, Any] = {"seed": work.config.seed, "systems": {k: losses(work, v) for k, v in systems.items()}}
    before = right_after(work, [source, target], ratios)
    row["ratios"] = []
    for ratio, start in zip(ratios, before, strict=True):
        final = finalize(work, [source, target], ratio)
        after = losses(work, final) | {"best_epoch": final.outcome.best_epoch}
        row["ratios"].append({"ratio": ratio, "density": final.density, "before": start, "after": after})
        note(f"ratio {ratio:g}: test {after['test']:.3f}")
    return row


def measure(args: argparse.Namespace) -> None:
    """Measure every seed and write its record."""
    model = AutoModelForCausalLM.from_pretrained(demo_backbone(), dtype=torch.float32)
    backbone = (model, AutoTokenizer.from_pretrained(demo_backbone()))
    begin = time.perf_counter()
    args.records.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        work = demo_work(seed, args.set, backbone)
        counts = {name: len(rows) for name, rows in work.target.items()} | {"source": len(work.source["train"])}
        manifest = build_manifest(work.config, {"model": demo_backbone()}, [Path(sys.argv[0]).name, *sys.argv[1:]])

        def note(text: str, seed: int = seed) -> None:
            print(f"seed {seed}, {time.perf_counter() - begin:.0f} s: {text}", file=sys.stderr, flush=True)

        row = measure_seed(work, args.ratios, note)
        write_json_atomic(args.records / f"curve-{seed}.json", {**row, "examples": counts, "manifest": manifest})


def read_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of one kind, by seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"{kind}-*.json")]
    return sorted(found, key=lambda record: int(record["seed"]))


# --- the table --------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return a loss as mean +- standard deviation over seeds."""
    return mean_and_deviation(values, 3)


def system_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of the rivals."""
    lines = ["| system | dev loss | test loss |", "| --- | --- | --- |"]
    for name, label in SYSTEMS.items():
        cells = [spread([run["systems"][name][split] for run in runs]) for split in SPLITS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def ratio_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the curve: losses before and after the final run at each ratio, and the test loss against the target's."""
    head = ("ratio", "dev right after merging", "dev after the final run", "test after it", "test minus target only")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --- |" * (len(head) - 1)]
    for rows in zip(*(run["ratios"] for run in runs), strict=True):
        alone = [run["systems"]["target"]["test"] for run in runs]
        differences = [row["after"]["test"] - other for row, other in zip(rows, alone, strict=True)]
        cells = [
            f"{rows[0]['ratio']:g}",
            spread([row["before"]["dev"] for row in rows]),
            spread([row["after"]["dev"] for row in rows]),
            spread([row["after"]["test"] for row in rows]),
            spread(differences),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def grid_line(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what a grid search by dev loss after a full run at each ratio would choose, and its test loss."""
    best = [min(run["ratios"], key=lambda row: row["after"]["dev"]) for run in runs]
    chosen = ", ".join(f"{row['ratio']:g}" for row in best)
    return f"Grid search by dev loss chooses {chosen}: test loss {spread([row['after']['test'] for row in best])}."


def setting(manifest: Mapping[str, Any], counts: str, seeds: Sequence[int]) -> str:
    """Return what a table's figures are of: task, examples, seeds, hardware, versions."""
    versions, cores, task = manifest["versions"], manifest["hardware"]["cores"], manifest["config"]["task"]
    return (
        f"`grasp-lora demo`, {task['name']}, {task['language']}: {counts}. Seeds {', '.join(map(str, seeds))} "
        "(each draws its own data), mean ± standard deviation over seeds. Loss: nats per answer token. "
        f"{cores} CPU cores; torch {versions['torch']}, transformers {versions['transformers']}."
    )


def table(args: argparse.Namespace) -> None:
    """Print the records of `measure` as Markdown."""
    runs = read_records(args.records, "curve")
    counts = runs[0]["examples"]
    shown = (
        f"{counts['source']} source and {counts['train']} target examples; n = {counts['test']} test, "
        f"{counts['dev']} dev"
    )
    head = setting(runs[0]["manifest"], shown, [run["seed"] for run in runs])
    print_lines([head, "", *system_lines(runs), "", *ratio_lines(runs), "", grid_line(runs)])


def print_lines(lines: Sequence[str]) -> None:
    """Print Markdown."""
    sys.stdout.write("\n".join(lines) + "\n")


# --- whole runs -------------------------------------------------------------------------------------------------


def gather(args: argparse.Namespace) -> None:
    """Keep what finished runs of the demo found, and print the mean over their seeds."""
    args.records.mkdir(parents=True, exist_ok=True)
    for folder in args.runs:
        found = record(folder)
        write_json_atomic(args.records / f"run-{found['seed']}.json", found)
    runs = read_records(args.records, "run")
    systems = runs[0]["results"]["systems"]["grasp"]
    scores = [row["name"] for row in systems["scores"] if row["available"]]
    head = setting(runs[0]["manifest"], f"n = {systems['examples']} test examples", [run["seed"] for run in runs])
    print_lines([head, "", *cell_table(runs, scores), "", ratio_line(runs)])


def record(folder: Path) -> dict[str, Any]:
    """Return one run's seed, scores, ratio and provenance."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    results = {name: found[name] for name in ("p_star", "interval", "density", "search", "systems")}
    results["search"].pop("estimate", None)  # the whole curve: long, and shown by the run's report
    return {"seed": manifest["seeds"]["run"], "results": results, "manifest": manifest}


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    measuring.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    measuring.add_argument("--set", action="append", default=[], help="section.key=value; {seed} is filled in")
    gathering = commands.add_parser("gather")
    gathering.add_argument("runs", type=Path, nargs="*", help="finished run folders; without any: print the records")
    for command in (measuring, gathering, commands.add_parser("table")):
        command.add_argument("--records", type=Path, required=True, help="folder of the records")
    args = parser.parse_args()
    {"measure": measure, "gather": gather, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
