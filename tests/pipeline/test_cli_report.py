"""`report` and `watch` from the command line."""

import json

import pytest

from report.synthetic import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "one")


@pytest.fixture
def launched(monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    return opened


def test_report_prints_the_verdict_and_where_the_page_is(run, cli, launched):
    said = cli("report", run)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("one: No difference between GRASP and “target fine-tuned from source”")
    assert said.out.splitlines()[-1] == f"{run}/report/report.html, {run}/report/report.md"
    assert launched == []
    assert cli("report", run, "--still", "--open").code == 0
    assert launched == [str(run / "report" / "report.html")]


def test_report_as_json_holds_every_comparison(run, cli, tmp_path, launched):
    said = json.loads(cli("report", run, "--json", "--still", "--out", tmp_path / "r.html").out)
    assert (said["html"], said["comparison"]) == (str(tmp_path / "r.html"), None)
    (found,) = said["runs"]
    assert {c["rival"]: c["outcome"] for c in found["comparisons"]}["zero_shot"] == "wins"
    assert found["interval"][0] <= found["p_star"] <= found["interval"][1]
    assert found["missing"] == []


def test_report_says_what_a_run_lacks(run, cli):
    (run / "stages" / "export" / "result.json").unlink()
    assert "missing: The stage “export” has begun and has no result.json yet." in cli("report", run, "--still").out


def test_bad_requests_are_one_message(run, cli, tmp_path):
    assert "not a run folder" in cli("report", tmp_path).error
    assert cli("report", run, run).code == 2
    assert cli("report").code == 2
    (tmp_path / "mine.html").write_text("mine")
    refused = cli("report", run, "--out", tmp_path / "mine.html")
    assert (refused.code, "is not a report of this package" in refused.error) == (6, True)
    both = cli("watch", run, "--json")
    assert (both.code, "Add --once" in both.error) == (2, True)


def test_watch_once_and_to_the_end(run, cli):
    state = json.loads(cli("watch", run, "--once", "--json").out)
    assert (state["status"], state["stages"]["search"], state["current"]) == ("finished", "done", None)
    assert "✓ search" in cli("watch", run, "--once").out
    assert cli("watch", run).out == "one  the run is finished\n"
