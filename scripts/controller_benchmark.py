"""Compare ways to find a prune ratio on landscape files and on families of made-up landscapes; prints Markdown tables.

    python scripts/controller_benchmark.py --landscape FILE [--landscape FILE ...] --out RECORDS.json
    python scripts/controller_benchmark.py --families held-out --seeds 30 --slow-seeds 2 10 --out RECORDS.json
    python scripts/controller_benchmark.py --show RECORDS.json

The records hold every single result, so that the tables can be made again without a run. Optuna's GP sampler takes
seconds where the others take a fraction of one: it gets `--slow-seeds`, the first of the `--seeds` of all others.
Optuna comes with the extra `baselines`. `--only NAME` measures one way again and keeps the others of the file at
`--out`, which then says where they come from.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from controller_rivals import CANDIDATES, FEW, Job, Way, ways
from numpy.typing import NDArray

import grasp_lora.controller
from grasp_lora.controller.families import FAMILIES, Split, member
from grasp_lora.controller.landscape import Landscape
from grasp_lora.controller.slices import read_landscape
from grasp_lora.errors import GraspError, MissingExtraError
from grasp_lora.runs import hash_file, hash_folder, portable, read_json, write_json_atomic
from grasp_lora.runs.manifest import versions

SLOW = "Optuna GP"
REFERENCES = ("default", "default, no early stop")
Vector = NDArray[np.float64]
Columns = dict[str, list[Any]]
Records = dict[str, dict[str, Columns]]
"""By way and group, one value per seed: regret (nats), evaluations, covered, width (absent without an interval)."""


def groups(given: argparse.Namespace) -> dict[str, list[Job]]:
    """Return the jobs of each landscape file, or of each family."""
    if given.families:
        split = cast(Split, given.families)
        return {name: [(member(name, split, k), k) for k in range(given.seeds)] for name in FAMILIES}
    lands = [read_landscape(path) for path in given.landscape]
    flat = [land for land in lands if isinstance(land, Landscape)]
    if len(flat) < len(lands):
        raise SystemExit("the rivals choose a ratio only: give landscapes of one dimension")
    return {land.name: [(land, seed) for seed in range(given.seeds)] for land in flat}


def measure(
    found: Mapping[str, Way], jobs: Mapping[str, Sequence[Job]], slow: Mapping[str, int], workers: int
) -> dict[str, Any]:
    """Run every way on every job, those in `slow` on the first so many; returns `records` and wall `seconds` by way."""
    records: Records = {}
    seconds: dict[str, float] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name, way in found.items():
            start = time.perf_counter()
            most = slow.get(name)
            records[name] = {
                group: columns(list(pool.map(way, rows[:most], chunksize=2))) for group, rows in jobs.items()
            }
            seconds[name] = round(time.perf_counter() - start, 1)
            sys.stderr.write(f"{name}: {seconds[name]} s\n")
    return {"records": records, "seconds": seconds}


def columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return rows of one group as columns, numbers to a ten-millionth; what is unknown in every row is left out."""
    found = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: [round(value, 7) if isinstance(value, float) else value for value in values]
        for key, values in found.items()
        if any(value is not None for value in values)
    }


def describe(given: argparse.Namespace) -> dict[str, Any]:
    """Return what the records come from: command, versions, hashes of the controller's code and of the files."""
    return {
        "command": shlex.join(["python", "scripts/controller_benchmark.py", *portable(sys.argv[1:])]),
        "rounds": given.rounds,
        "candidates": CANDIDATES,
        "versions": {**versions(), "optuna": _optuna_version()},
        "controller_sha256": hash_folder(Path(grasp_lora.controller.__file__).parent, [".py"]),
        "landscapes": {Path(path).name: hash_file(path) for path in given.landscape},
        "families": given.families,
    }


def _optuna_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("optuna")
    except metadata.PackageNotFoundError:
        return None


# --- tables -----------------------------------------------------------------------------------------------------


def _column(group: Columns, key: str) -> Vector:
    return np.array(group[key], dtype=float)


def mean_of_groups(parts: Sequence[Vector]) -> tuple[float, float]:
    """Return the mean over groups of the group means, and its standard error."""
    errors = [part.std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else np.nan for part in parts]
    return float(np.mean([part.mean() for part in parts])), float(np.sqrt(np.sum(np.square(errors)))) / len(parts)


def _less(records: Records, name: str, reference: str) -> str:
    """Return the mean difference to the reference on the same slices and its standard error, in 1e-5 nats."""
    if name == reference:
        return "-"
    pairs = [
        (_column(own, "regret"), _column(records[reference][group], "regret")) for group, own in records[name].items()
    ]
    mean, error = mean_of_groups([own - other[: len(own)] for own, other in pairs])
    return f"{1e5 * mean:+.0f} ± {1e5 * error:.0f}"


def _per_group(by_group: Mapping[str, Columns], key: str) -> str:
    if any(key not in group for group in by_group.values()):
        return "-"
    return " / ".join(f"{_column(group, key).mean():.2f}" for group in by_group.values())


def table(saved: Mapping[str, Any]) -> str:
    """Return the Markdown table of saved records: one line per way, mean regrets in 1e-5 nats."""
    records: Records = saved["records"]
    names = list(next(iter(records.values())))
    head = ["way", "n", *names, "mean ± s.e.", *(f"less {r}" for r in REFERENCES), "evaluations", "coverage", "width"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, by_group in records.items():
        regrets = [_column(group, "regret") for group in by_group.values()]
        mean, error = mean_of_groups(regrets)
        spent = np.mean([_column(group, "evaluations").mean() for group in by_group.values()])
        cells = [name, str(len(regrets[0])), *(f"{1e5 * part.mean():.0f}" for part in regrets)]
        cells += [f"{1e5 * mean:.0f} ± {1e5 * error:.0f}", *(_less(records, name, r) for r in REFERENCES)]
        cells += [f"{spent:.0f}", *(_per_group(by_group, key) for key in ("covered", "width"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and save, or show what was saved."""
    parser = argparse.ArgumentParser(description="compare ways to find a prune ratio")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--landscape", action="append", default=[])
    what.add_argument("--families", choices=["development", "held-out"])
    what.add_argument("--show", type=Path)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument(
        "--slow-seeds", type=int, nargs=2, default=(8, 24), metavar=("ALL", "FEW"),
        help=f"of {SLOW} with all evaluations and with few; 0 leaves it out",
    )  # fmt: skip
    parser.add_argument("--without-optuna", action="store_true")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="with --out: keep all other ways")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        saved = read_json(given.show) if given.show else _run(given)
    except GraspError as error:
        raise SystemExit(f"error: {error}") from None
    print(table(saved))


def _run(given: argparse.Namespace) -> dict[str, Any]:
    found = ways(given.rounds)
    slow = {name: given.slow_seeds[f", {FEW * (CANDIDATES + 1)}" in name] for name in found if name.startswith(SLOW)}
    without = {name for name in found if (given.without_optuna and "Optuna" in name) or slow.get(name) == 0}
    without |= {name for name in found if given.only and name not in given.only}
    found = {name: way for name, way in found.items() if name not in without}
    if any("Optuna" in name for name in found) and _optuna_version() is None:
        raise MissingExtraError("optuna", "baselines", "comparing with Optuna's samplers (or add --without-optuna)")
    earlier = read_json(given.out) if given.only else None
    saved = {**describe(given), **measure(found, groups(given), slow, given.workers)}
    if earlier is not None:
        saved = joined(saved, earlier)
    if given.out:
        write_json_atomic(given.out, saved, indent=None)
    return saved


def joined(saved: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return new records with the other ways of earlier ones beside them, in the earlier order, and whence these come.

    Raises `SystemExit` where the two are of different landscapes or numbers of rounds.
    """
    same = ("rounds", "candidates", "landscapes", "families")
    if any(saved[key] != earlier[key] for key in same):
        raise SystemExit(f"--only: the records at --out differ in one of {', '.join(same)}. Measure all ways again.")
    source = {key: earlier[key] for key in ("command", "versions", "controller_sha256")}
    older = [
        {**part, "ways": [w for w in part["ways"] if w not in saved["records"]]} for part in earlier.get("kept", [])
    ]
    own = [w for w in earlier["records"] if w not in saved["records"] and not any(w in part["ways"] for part in older)]
    kept = [part for part in (*older, {"ways": own, **source}) if part["ways"]]
    parts = {
        key: {name: {**earlier[key], **saved[key]}[name] for name in earlier[key]} for key in ("records", "seconds")
    }
    return {**saved, **parts, "kept": kept}


if __name__ == "__main__":
    main()
