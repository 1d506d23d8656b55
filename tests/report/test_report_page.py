"""The page and its Markdown twin: whole, harmless, portable, the same every time."""

import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from grasp_lora.errors import ConfigError, MissingExtraError, RunError
from grasp_lora.report import write_report
from grasp_lora.report.comparing import compare_runs
from grasp_lora.report.figures.interactive import plotly_script
from grasp_lora.report.page import render_page
from grasp_lora.report.provenance import cost_tables
from grasp_lora.report.tables import stage_costs
from grasp_lora.report.write import contents_of
from report.synthetic import SYSTEMS, rows, settings, write_lines, write_run

EVIL = '</script><img src=x onerror="alert(1)"> [a](javascript:alert(1)) **b** | c `d` &amp;'
VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = ["scores", "learned", "diagnostics", "masks", "losses", "examples", "cost", "provenance"]


class Page(HTMLParser):
    """Elements with their attributes; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(kept_run, tmp_path_factory):
    return write_report([kept_run], tmp_path_factory.mktemp("out") / "r.html")


@pytest.fixture
def sketched(monkeypatch):
    """Figures as empty pictures, for tests of everything else."""
    monkeypatch.setattr("grasp_lora.report.figures.svg.draw", lambda _figure, _width: "<svg></svg>")


@pytest.fixture(scope="module")
def page(written):
    return Page(written.html.read_text())


def test_every_section_is_there_and_linked(page):
    assert [a["href"] for a in page.named("a")][1:] == [f"#run1-{key}" for key in SECTIONS]
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {f"run1-{key}" for key in SECTIONS} <= set(identifiers)


def test_the_page_says_what_the_record_says(page, record, content):
    assert content.verdict.sentence in page.text
    low, high = record.result("search")["interval"]
    assert f"90% interval [{low:.2f}, {high:.2f}]" in page.text
    assert "mask_thrashing Commits flipped much." in page.text
    assert "What to do: lower controller.max_step." in page.text
    for system in ("zero shot", "target adapter only", "merged, not pruned", "GRASP"):
        assert system in page.text


def test_nothing_comes_from_outside(written, page):
    text = written.html.read_text()
    script = re.search(r'<script type="text/plain"[^>]*>[^<]*</script>', text)
    outside = re.findall(r"https?://[^\s\"'<)]+", text.replace(script[0], ""))
    assert outside == []
    assert not page.named("link")
    assert not page.named("img")
    (policy,) = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_text_from_files_shows_its_own_direction(page):
    questions = [a for tag, a in page.elements if tag == "p" and a.get("class") == "question"]
    assert questions
    assert all(a["dir"] == "auto" for a in questions)
    assert page.named("bdi")


def test_the_same_run_gives_the_same_bytes_without_a_path_of_the_machine(kept_run, written, tmp_path):
    again = write_report([kept_run], tmp_path / "r.html")
    for name in ("html", "markdown"):
        text = getattr(written, name).read_bytes()
        assert text == getattr(again, name).read_bytes()
        assert str(kept_run.parent).encode() not in text
        assert b"/machine" not in text


def test_text_from_files_never_becomes_markup(run, sketched, tmp_path):
    for name in SYSTEMS:
        found = rows(0.1, question=EVIL, gold=EVIL, prediction=EVIL + " more")
        write_lines(run / "stages" / f"evaluate_{name}" / "predictions.jsonl", found)
    path = run / "stages" / "search" / "result.json"
    result = json.loads(path.read_text())
    result["stop_reason"] = result["diagnostics"][0]["seen"] = EVIL
    path.write_text(json.dumps(result))
    evil = run.rename(run.parent / "<b>run & *x*")
    written = write_report([evil], tmp_path / "r.html")
    page = Page(written.html.read_text())
    assert not page.named("img")
    assert not page.named("b")
    assert page.text.count(EVIL) >= 10
    assert "<b>run & *x*" in page.text
    shown = MarkdownIt("commonmark").enable("table").render(written.markdown.read_text())
    assert not re.search(r"<(img|b|script)\b|href=", shown)
    assert "<strong>b</strong>" not in shown
    assert "&lt;b&gt;run &amp; *x*" in shown


def test_the_markdown_twin_has_the_same_words_and_tables(written, content):
    text = written.markdown.read_text()
    assert written.markdown.name == "r.md"
    assert content.verdict.sentence in text.replace("\\", "")
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert shown.count("<table>") == sum(len(section.tables) for section in content.sections)
    assert "| GRASP | 1." in text
    assert "question: من أين جاء؟" in text


def test_without_zoom_the_page_has_the_pictures_and_no_script(content):
    text = render_page([content], None, zoom=False)
    page = Page(text)
    assert not page.named("script")
    assert len(page.named("svg")) == 2 * len(page.named("figure")) > 10
    assert len(text) < 1_000_000
    assert 1.5e6 < len(plotly_script()) < 2.5e6  # what the documents call about 2 MB


# --- several runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(kept_run, tmp_path):
    other = settings(controller={"max_step": 0.2})
    second = write_run(tmp_path / "two", {"target": 0.2, "grasp": 0.1}, seed=1, config=other)
    return [kept_run, second]


def test_several_runs_are_compared_first(two, sketched, tmp_path):
    written = write_report(two, tmp_path / "c.html")
    page = Page(written.html.read_text())
    assert "2 runs compared" in page.text
    assert [a["id"] for a in page.named("details") if a.get("class") == "run"] == ["run1", "run2"]
    assert {"runs-trajectories", "runs-curves", "runs-losses-0"} <= {a["id"] for a in page.named("figure")}
    assert written.summary["comparison"].startswith("“one” has the lowest test loss of 2 runs")
    assert [run["run"] for run in written.summary["runs"]] == ["one", "two"]
    assert "# 2 runs compared" in written.markdown.read_text()


def test_what_differs_is_shown_and_nothing_else(two):
    found = compare_runs(contents_of(two))
    (differing,) = [table for table in found.tables if table.title == "Settings that differ"]
    assert differing.rows == [["controller.max_step", "0.1", "0.2"]]
    (pairs,) = [table for table in found.tables if "first run less second" in table.title]
    assert pairs.rows[0][:2] == ["one", "two"]
    assert pairs.rows[0][-1] == "the first is better"


def test_runs_on_other_test_examples_are_not_held_against_each_other(two):
    path = two[1] / "stages" / "evaluate_grasp" / "predictions.jsonl"
    write_lines(path, [row | {"id": f"other{k}"} for k, row in enumerate(rows(0.1))])
    found = compare_runs(contents_of(two))
    assert "none can be called better" in found.sentence
    assert any("different test examples" in note for note in found.notes)
    assert [row[-1] for row in found.tables[0].rows] == ["A", "B"]


def test_runs_of_the_same_name_are_numbered_and_unfinished_ones_take_part(run, sketched, kept_run, tmp_path):
    shutil.rmtree(run / "stages" / "evaluate_grasp")
    (run / "results.json").unlink()
    contents = contents_of([kept_run, run])
    assert [content.label for content in contents] == ["one (1)", "one (2)"]
    found = compare_runs(contents)
    assert "“one (2)” has no scores of GRASP." in found.notes
    assert [row[-1] for row in found.tables[0].rows] == ["finished", "not finished"]
    Page(render_page(contents, found, zoom=False))


# --- where it is written ------------------------------------------------------------------------------------------


def test_a_report_lies_in_its_run_and_is_renewed(run, sketched, monkeypatch):
    first = write_report([run])
    assert first.html == run / "report" / "report.html"
    before = first.html.read_bytes()
    assert write_report([run]).html.read_bytes() == before
    monkeypatch.chdir(run.parent)
    assert write_report(["one", shutil.copytree("one", "two")], None, zoom=False).html.name == "comparison.html"


@pytest.mark.parametrize("name", ["r.html", "r.md"])
def test_a_file_that_is_no_report_is_never_overwritten(name, run, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=r"is not a report of this package.*--out"):
        write_report([run], tmp_path / "r.html")
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["one", name])


def test_bad_requests_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="given twice"):
        write_report([run, run.parent / "." / run.name])
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report([run], tmp_path / "r.pdf")
    with pytest.raises(RunError, match="not a run folder"):
        write_report([tmp_path])


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "plotly.offline"])
def test_a_missing_package_writes_nothing_and_says_what_to_install(package, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'grasp-lora\[report\]'"):
        write_report([run])
    assert not (run / "report").exists()


def test_the_peak_of_a_stage_on_a_gpu_is_in_its_row(record):
    name = next(iter(stage_costs(record.stages)))
    plain = cost_tables(record)[1][0]
    assert "peak GPU memory" not in plain.columns
    memory = {"seq": 10**6, "kind": "memory", "peak_bytes": 3 * 2**30, "time": {}}
    events = {**record.events, name: (*record.events.get(name, ()), memory)}
    table = cost_tables(replace(record, events=events))[1][0]
    assert table.columns[-1] == "peak GPU memory"
    assert [row[-1] for row in table.rows] == ["3.0 GiB", *["-"] * (len(table.rows) - 1)]
