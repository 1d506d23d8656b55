"""Write splits of the demo's world as files, one folder per task and language, for comparisons and trials.

    python scripts/world_files.py --out DIR [--tasks qa summarization] [--languages ar zh] [--seed 42]

Every folder holds train, dev, micro_dev and test of the target language and source-train, source-dev in English. The
same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grasp_lora.data.world import demo_splits
from grasp_lora.runs import to_json, write_text_atomic


def file_name(split: str) -> str:
    """Return a split's file name: source splits carry the side in front, as the demo's files do."""
    return f"{split.replace('source_', 'source-')}.jsonl"


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=["qa", "summarization"], default=["qa"])
    parser.add_argument("--languages", nargs="+", choices=["ar", "zh"], default=["ar", "zh"])
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    for task in args.tasks:
        for language in args.languages:
            for split, rows in demo_splits(task, language, args.seed).items():
                path = args.out / task / language / file_name(split)
                write_text_atomic(path, "".join(to_json(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
