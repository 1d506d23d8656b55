"""Every measurement on real tasks in one command, which repeated goes on with what is there.

    python scripts/real_comparison.py --backbone DIR --data DIR --out DIR [--jobs 8] [--time-limit SECONDS]
    python scripts/real_comparison.py --backbone DIR --data DIR --out DIR --tables-only --records benchmarks/compare

Settings: benchmarks/compare/real.yaml, whose parts are done in their order. A run that was stopped, or that a job's
time limit ended, is gone on with by the same command. `--records` writes the records where the pages of results are
made from (scripts/results_page.py). `--settings` names a file whose sections replace those of real.yaml:
benchmarks/compare/fresh.yaml is the same comparison on new draws and seeds (scripts/fresh_draws.py). Cells with 4, 8
and 32 micro-dev examples are cut from micro_dev_32.jsonl beside micro_dev.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from grasp_lora.cli.options import command_line, out
from grasp_lora.config import Config, build_config, load_config, parse_yaml, to_dict
from grasp_lora.errors import GraspError
from grasp_lora.pipeline.comparison import Asked, Comparison, compare, compare_config
from grasp_lora.runs import make_progress, write_json_atomic, write_text_atomic
from grasp_lora.runs.folder import MARKER

SETTINGS = Path(__file__).resolve().parent.parent / "benchmarks" / "compare" / "real.yaml"
SIZED = "micro-dev"  # the part that gets a cell for each of these sizes
SIZES = (4, 8, 32)


def settings(args: argparse.Namespace) -> Config:
    """Return the settings of what is asked for."""
    tree = parse_yaml(SETTINGS.read_text(encoding="utf-8"), SETTINGS.name)
    if args.settings:
        tree |= parse_yaml(args.settings.read_text(encoding="utf-8"), args.settings.name)
    section = tree["compare"]
    if args.cells:
        section["cells"] = [cell for cell in section["cells"] if cell["name"] in args.cells.split(",")]
    for part in section["parts"]:
        if part["name"] == SIZED:
            part["cells"] = section["cells"] + sized_cells(args, section["cells"])
    section |= {"root": str(args.data.resolve()), "seeds": args.seeds or section["seeds"]}
    tree["model"]["name_or_path"] = str(args.backbone)
    tree["run"] |= {"dir": str(args.out), "tokens": str(args.tokens) if args.tokens else None}
    config = load_config(None, args.set, to_dict(build_config(tree)))
    parts = None if args.parts is None else [name for name in args.parts.split(",") if name not in ("", "main")]
    methods = args.methods.split(",") if args.methods else None
    if methods and config.compare.reference not in methods:  # a table of a few rows is held against its last
        compared = config.compare.model_copy(update={"reference": methods[-1]})
        config = config.model_copy(update={"compare": compared})
    return compare_config(config, methods, args.jobs, args.time_limit, parts)


def sized_cells(args: argparse.Namespace, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every cell with each size of micro-dev; the slices are the first lines of micro_dev_32.jsonl."""
    sized = []
    for cell in cells:
        whole = (args.data / cell["target"]["micro_dev"]).with_name("micro_dev_32.jsonl")
        lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
        for size in SIZES:
            path = args.out.resolve().with_name(f"{args.out.name}-micro-dev") / f"{cell['name']}-{size}.jsonl"
            write_text_atomic(path, "".join(lines[:size]))
            target = cell["target"] | {"micro_dev": str(path)}
            name = f"{cell['name']}-m{size}"
            sized.append(cell | {"name": name, "target": target, "set": {"data.micro_dev_size": size}})
    return sized


def write_records(folder: Path, name: str, done: Comparison) -> None:
    """Write the records of the main table and of every part where results_page.py finds them."""
    write_json_atomic(folder / f"{name}.json", done.records)
    for part, records in done.parts.items():
        write_json_atomic(folder / f"{name}-{part}.json", records)


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("backbone", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="sections that replace those of real.yaml, e.g. fresh.yaml's")
    parser.add_argument("--jobs", type=int, help="runs side by side; default as in real.yaml")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--cells", help="with commas; default all")
    parser.add_argument("--parts", help="beside the main table, with commas; default all, `main`: none")
    parser.add_argument("--methods", help="rows of the main table, which then is the only one")
    parser.add_argument("--time-limit", type=float, help="seconds after which no run is started any more")
    parser.add_argument("--tokens", type=Path, help="folder that keeps token sequences; default: below OUT")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--tables-only", action="store_true", help="run nothing: records and tables of what is there")
    parser.add_argument("--no-tables", action="store_true", help="make records and tables later")
    parser.add_argument("--records", type=Path, help="folder to write the records to")
    return parser.parse_args()


def main() -> int:
    """Parse, run or go on, print the tables; returns the exit status."""
    args = arguments()
    try:
        config = settings(args)
        resume = args.tables_only or (Path(str(config.run.dir)) / MARKER).is_file()
        asked = Asked(resume=resume, run=not args.tables_only, tables=not args.no_tables)
        done = compare(config, make_progress(), asked, command=command_line())
    except GraspError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if asked.tables:
        if args.records:
            write_records(args.records, (args.settings or SETTINGS).stem, done)
        out(done.tables)
    return done.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
