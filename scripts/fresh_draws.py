"""Draw new training, dev and micro-dev examples from the test files of real tasks: what no choice was made on.

    python scripts/fresh_draws.py --data DIR --out DIR [--seeds 7 2024 31337]

DATA/{qa,title}/{ar,zh}/test.jsonl are read. The documents of each are halved. One half is the new test file, the same
for all seeds; from the other every seed draws for itself as many examples as train.jsonl, dev.jsonl and
micro_dev.jsonl beside it have, in splits that share no document. As there, training examples come from a document
each as far as there are enough documents, and dev and micro-dev take documents whole. OUT then is a data folder for
benchmarks/compare/fresh.yaml: OUT/qa/ar/test.jsonl and OUT/SEED/qa/ar/{train,dev,micro_dev}.jsonl, with the
source's files copied.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grasp_lora.data.leakage import text_key
from grasp_lora.errors import DataError, GraspError
from grasp_lora.rng import derive_seed
from grasp_lora.runs import write_text_atomic

Row = dict[str, Any]
CELLS = ("qa/ar", "qa/zh", "title/ar", "title/zh")
SOURCES = ("qa/en", "title/en")
SEEDS = (7, 2024, 31337)
WHOLE = ("dev", "micro_dev")  # splits that take documents whole


def by_document(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the examples of each document, in the order of the file; another question on a text is the same one."""
    found: dict[bytes, list[Row]] = {}
    for row in rows:
        found.setdefault(text_key(row["context"] if "context" in row else row["text"]), []).append(row)
    return list(found.values())


def halves(rows: Sequence[Row], name: str) -> tuple[list[list[Row]], list[Row]]:
    """Return the documents to draw from, and the examples of all others in the order of the file."""
    documents = by_document(rows)
    drawn = set(_random(0, name).sample(range(len(documents)), len(documents) // 2))
    pool = [documents[index] for index in sorted(drawn)]
    return pool, [row for index, each in enumerate(documents) if index not in drawn for row in each]


def draw(pool: Sequence[list[Row]], sizes: dict[str, int], seed: int, name: str) -> dict[str, list[Row]]:
    """Return the splits of one seed, with `sizes` examples; raises `DataError` when the documents do not suffice."""
    dealer = _random(seed, name)
    documents = dealer.sample(pool, len(pool))
    splits: dict[str, list[Row]] = {}
    for split in WHOLE:
        splits[split] = []
        while documents and len(splits[split]) < sizes[split]:
            splits[split] += documents.pop()
        splits[split] = splits[split][: sizes[split]]
    train: list[Row] = []
    rest = [dealer.sample(each, len(each)) for each in documents]
    while rest and len(train) < sizes["train"]:  # one of each document, then a second one
        train += [each.pop() for each in rest][: sizes["train"] - len(train)]
        rest = [each for each in rest if each]
    splits["train"] = train
    short = [split for split, rows in splits.items() if len(rows) < sizes[split]]
    if short:
        raise DataError(f"{name}: too few documents for {', '.join(short)} in half of test.jsonl ({len(pool)}).")
    return splits


def _random(seed: int, name: str) -> random.Random:
    return random.Random(derive_seed(seed, f"fresh draw {name}"))


def read(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file; raises `DataError` when it is not there."""
    if not path.is_file():
        raise DataError(f"{path} is not there. --data is the folder with {', '.join(CELLS)}.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON Lines."""
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def draw_cell(data: Path, out: Path, name: str, seeds: Sequence[int]) -> str:
    """Write the test file of a cell and the splits of every seed; returns what was done in a line."""
    sizes = {split: len(read(data / name / f"{split}.jsonl")) for split in ("train", *WHOLE)}
    pool, test = halves(read(data / name / "test.jsonl"), name)
    write(out / name / "test.jsonl", test)
    for seed in seeds:
        for split, rows in draw(pool, sizes, seed, name).items():
            write(out / str(seed) / name / f"{split}.jsonl", rows)
    shown = ", ".join(f"{split} {size}" for split, size in sizes.items())
    return f"{name}: {len(pool)} documents to draw {shown} from; test {len(test)}\n"


def main() -> int:
    """Parse, draw, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    args = parser.parse_args()
    try:
        for name in CELLS:
            sys.stdout.write(draw_cell(args.data, args.out, name, args.seeds))
        for name in SOURCES:
            for split in ("train", "dev"):
                write(args.out / name / f"{split}.jsonl", read(args.data / name / f"{split}.jsonl"))
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
