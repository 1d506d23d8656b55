"""The report as Markdown: the same words and tables, for a terminal, a pull request or a wiki; no figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .comparing import RunsComparison
from .content import RunContent, Section
from .examples import Answer, SideBySide
from .figures.spec import Figure
from .labels import sentence_case
from .page import GENERATOR
from .tables import Table

# What would start markup: code, emphasis, tables and tags anywhere; links before what makes them one; underscores at
# the ends of words; headings and quotes at the start.
_SPECIAL = re.compile(r"[\\`*<|]|\](?=[(\[:])|~~|(?<![^\W_])_|_(?![^\W_])|^[#>]")


def render_markdown(runs: Sequence[RunContent], comparison: RunsComparison | None) -> str:
    """Return the Markdown twin of a report. Text from files is escaped, so that none of it becomes markup."""
    lines = [f"<!-- {GENERATOR} -->", ""]
    if comparison is not None:
        lines += [f"# {len(runs)} runs compared", "", f"**{plain(comparison.sentence)}**", ""]
        lines += _notes(comparison.notes)
        for table in comparison.tables:
            lines += _table(table)
        for figure in comparison.figures:
            lines += _figure(figure)
    for run in runs:
        lines += _run(run, 2 if comparison is not None else 1)
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """Return text with the marks of Markdown and HTML escaped and line breaks turned into blanks."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.replace("&", "&amp;").split()))


def _run(run: RunContent, level: int) -> list[str]:
    lines = [f"{'#' * level} {plain(run.label)}", "", plain(run.about), "", f"**{plain(run.verdict.sentence)}**", ""]
    lines += _notes(run.verdict.notes)
    lines += [f"- {plain(fact.what)}: **{plain(fact.value)}** {plain(fact.more)}" for fact in run.facts]
    lines += [""] if run.facts else []
    if run.record.missing:
        lines += ["What this run lacks:", "", *(f"- {plain(line)}" for line in run.record.missing), ""]
    for section in run.sections:
        lines += [f"{'#' * (level + 1)} {plain(section.title)}", "", *_section(section)]
    return lines


def _section(section: Section) -> list[str]:
    lines = _notes(section.notes)
    for found in section.diagnostics:
        seen, why = (plain(sentence_case(str(found[name]))) for name in ("seen", "why"))
        advice = f"What to do: {plain(str(found['advice']))}."
        lines += [f"- **{plain(str(found['severity']))}** `{found['code']}`: {seen}. {why}. {advice}", ""]
    for table in section.tables:
        lines += _table(table)
    for figure in section.figures:
        lines += _figure(figure)
    for example in section.examples:
        lines += _example(example)
    return lines


def _notes(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in (plain(note), "")]


def _table(table: Table) -> list[str]:
    head = [
        f"| {' | '.join(plain(column) for column in table.columns)} |",
        "| --- |" + " --- |" * (len(table.columns) - 1),
    ]
    rows = [f"| {' | '.join(plain(cell) for cell in row)} |" for row in table.rows]
    return [f"{plain(table.title)}:", "", *head, *rows, ""]


def _figure(figure: Figure) -> list[str]:
    """Return what a figure shows in words; the picture itself is on the page."""
    return [f"*{plain(figure.title)}.* {plain(figure.alt)}", ""]


def _example(example: SideBySide) -> list[str]:
    asked = [f"- question: {plain(example.question)}"] if example.question is not None else []
    gold = " / ".join(plain(text) for text in example.gold)
    answers = [f"- {plain(a.label)} (loss {a.loss:.3f}): {_marked(a)}" for a in example.answers]
    return [f"{plain(example.why)}, {plain(example.id)}:", "", *asked, f"- gold answer: {gold}", *answers, ""]


def _marked(answer: Answer) -> str:
    """Return an answer with the words that differ in bold."""
    parts = []
    for piece in answer.pieces:
        inner = plain(piece.text)
        lead = " " if piece.text[:1].isspace() else ""
        tail = " " if piece.text[-1:].isspace() and inner else ""
        parts.append(f"{lead}**{inner}**{tail}" if piece.marked else f"{lead}{inner}{tail}")
    return "".join(parts) or "(nothing)"
