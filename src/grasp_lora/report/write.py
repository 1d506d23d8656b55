"""Write a report: read the runs, say what there is to say, and put page and Markdown twin side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..runs import write_text_atomic
from .comparing import compare_runs
from .content import RunContent, run_content
from .markdown import render_markdown
from .page import GENERATOR, render_page
from .records import read_run
from .verdict import comparison_json

FOLDER, FILE, TOGETHER = "report", "report.html", "comparison.html"


@dataclass(frozen=True)
class Report:
    """The two files that were written, and the verdicts in them as JSON values."""

    html: Path
    markdown: Path
    summary: dict[str, Any]


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, *, zoom: bool = True) -> Report:
    """Write one HTML page about the runs and its Markdown twin, and return where they are.

    Without `out`, one run's report goes to `RUN/report/report.html`, that of several to `comparison.html`. Raises
    `RunError` for a folder that is no run, or a file in the way that is not a report; `ConfigError` for the same run
    twice or an `out` that is no .html; `MissingExtraError` without the extra `report`.
    """
    paths = _distinct(runs)
    html = _target(paths, out)
    markdown = html.with_suffix(".md")
    for path in (html, markdown):
        _refuse_foreign(path)
    contents = contents_of(paths)
    comparison = compare_runs(contents) if len(contents) > 1 else None
    page = render_page(contents, comparison, zoom=zoom)
    write_text_atomic(html, page)
    write_text_atomic(markdown, render_markdown(contents, comparison))
    return Report(html, markdown, _summary(contents, comparison.sentence if comparison else None))


def contents_of(paths: Sequence[Path]) -> list[RunContent]:
    """Read the runs; those of the same name are numbered."""
    records = [read_run(path) for path in paths]
    names = [record.name for record in records]
    contents = []
    for index, record in enumerate(records):
        before = names[:index].count(record.name)
        label = record.name if names.count(record.name) == 1 else f"{record.name} ({before + 1})"
        contents.append(run_content(record, f"run{index + 1}", label))
    return contents


def _distinct(runs: Sequence[str | Path]) -> list[Path]:
    paths = [Path(run) for run in runs]
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(f"run folder {path} was given twice. Give each run once.")
        seen.add(path.resolve())
    return paths


def _target(paths: Sequence[Path], out: str | Path | None) -> Path:
    if out is None:
        return paths[0] / FOLDER / FILE if len(paths) == 1 else Path(TOGETHER)
    target = Path(out)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise ConfigError(f"--out needs a file that ends in .html, got '{out}'. Its Markdown twin ends in .md.")
    return target


def _refuse_foreign(path: Path) -> None:
    """Raise `RunError` when something that no report wrote lies at `path`."""
    if not path.exists():
        return
    if path.is_file() and GENERATOR.encode() in path.read_bytes()[:1024]:
        return
    raise RunError(f"{path} exists and is not a report of this package. Give another --out, or move it away.")


def _summary(contents: Sequence[RunContent], sentence: str | None) -> dict[str, Any]:
    runs = [
        {
            "run": run.label,
            "verdict": {"tone": run.verdict.tone, "sentence": run.verdict.sentence, "notes": list(run.verdict.notes)},
            "p_star": run.record.result("search").get("p_star"),
            "interval": run.record.result("search").get("interval"),
            "comparisons": [comparison_json(c) for c in run.comparisons],
            "missing": list(run.record.missing),
        }
        for run in contents
    ]
    return {"runs": runs, "comparison": sentence}
