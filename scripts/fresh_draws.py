"""Draw new training, dev and micro-dev examples from the test files of real tasks: what no choice was made on.

    python scripts/fresh_draws.py --data DIR --out DIR [--seeds 7 2024 31337]

DATA/{qa,title}/{ar,zh}/test.jsonl are read. The documents of each are halved. One half is the new test file, the same
for all seeds; from the other every seed draws for itself as many examples as train.jsonl, dev.jsonl and
micro_dev.jsonl beside it have, in splits that share no document. As there, training examples come from a document
each as far as there are enough documents, and dev and micro-dev take documents whole. OUT then is a data folder for
benchmarks/compare/fresh.yaml: OUT/qa/ar/test.jsonl and OUT/SEED/qa/ar/{train,dev,micro_dev}.jsonl, with the
source's files copied. More seeds may be drawn into the same OUT; a file with other content is not overwritten.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grasp_lora.data.leakage import text_key
from grasp_lora.data.readers import read_rows
from grasp_lora.errors import DataError, GraspError, RunError
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
    drawn = set(_random(0, f"fresh draw {name}").sample(range(len(documents)), len(documents) // 2))
    pool = [documents[index] for index in sorted(drawn)]
    return pool, [row for index, each in enumerate(documents) if index not in drawn for row in each]


def draw(pool: Sequence[list[Row]], sizes: dict[str, int], seed: int, name: str) -> dict[str, list[Row]]:
    """Return the splits of one seed, with `sizes` examples; raises `DataError` when the documents do not suffice."""
    # Seed 0 by another name: its own is that of the halves, which the records are made with.
    dealer = _random(seed, f"fresh draw {name}" if seed else f"fresh draw of seed 0 {name}")
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
    return random.Random(derive_seed(seed, name))


def read(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file; raises `DataError` for none, a bad line, or one without a document."""
    if not path.is_file():
        raise DataError(f"{path} is not there. --data is the folder with {', '.join(CELLS)}.")
    rows = []
    for where, row in read_rows(str(path)):
        if not isinstance(row.get("context", row.get("text")), str):
            raise DataError(f"{where}: there is no document: neither 'context' nor 'text' is a text.")
        rows.append(dict(row))
    return rows


def lines(rows: Sequence[Row]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_new(files: Mapping[Path, str]) -> None:
    """Write all files; raises `RunError`, and writes none, when one is there with other content."""
    for path, text in files.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise RunError(f"{path} exists with other content and is not overwritten. Choose another --out.")
    for path, text in files.items():
        write_text_atomic(path, text)


def draw_cell(data: Path, name: str, seeds: Sequence[int]) -> tuple[dict[str, list[Row]], str]:
    """Return a cell's test file and the splits of every seed by their path, and what was done in a line."""
    sizes = {split: len(read(data / name / f"{split}.jsonl")) for split in ("train", *WHOLE)}
    pool, test = halves(read(data / name / "test.jsonl"), name)
    found = {f"{name}/test.jsonl": test}
    for seed in seeds:
        for split, rows in draw(pool, sizes, seed, name).items():
            found[f"{seed}/{name}/{split}.jsonl"] = rows
    shown = ", ".join(f"{split} {size}" for split, size in sizes.items())
    return found, f"{name}: {len(pool)} documents to draw {shown} from; test {len(test)}\n"


def drawn(data: Path, seeds: Sequence[int]) -> tuple[dict[str, list[Row]], str]:
    """Return the rows of every file of a data folder by its path, and what was done."""
    found: dict[str, list[Row]] = {}
    said = ""
    for name in CELLS:
        files, line = draw_cell(data, name, seeds)
        found |= files
        said += line
    for name in SOURCES:
        found |= {f"{name}/{split}.jsonl": read(data / name / f"{split}.jsonl") for split in ("train", "dev")}
    return found, said


def main() -> int:
    """Parse, draw, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    args = parser.parse_args()
    try:
        found, said = drawn(args.data, args.seeds)
        write_new({args.out / path: lines(rows) for path, rows in found.items()})
        sys.stdout.write(said)
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
