"""The verdict is what the numbers say, for better or worse."""

import json

import numpy as np
import pytest

from grasp_lora.metrics import paired_bootstrap
from grasp_lora.report.content import run_content
from grasp_lora.report.examples import side_by_side
from grasp_lora.report.records import read_run
from grasp_lora.report.verdict import compare, verdict
from report.synthetic import SYSTEMS, rows, write_lines, write_run


def judged(tmp_path, **levels):
    """The verdict of a run whose systems differ by these losses."""
    record = read_run(write_run(tmp_path / "run", levels))
    found = compare(record)
    return record, {c.rival: c for c in found}, verdict(record, found)


@pytest.mark.parametrize(
    ("levels", "outcomes", "tone", "words"),
    [
        ({"target": 0.3, "sequential": -0.3, "grasp": 0.0}, {"target": "wins", "sequential": "loses"}, "bad",
         ("“Target fine-tuned from source” is better than GRASP by 0.3", "use it instead")),
        ({"target": 0.3, "merged": 0.0, "grasp": 0.0}, {"target": "wins", "merged": "ties"}, "even",
         ("No difference between GRASP and “merged, not pruned” can be shown", "take the cheaper one")),
        ({"target": 0.3, "zero_shot": 2.0, "grasp": 0.0}, {"target": "wins", "zero_shot": "wins"}, "good",
         ("lowest test loss of 3 methods", "“target adapter only”", "0.3")),
    ],
)  # fmt: skip
def test_the_sentence_follows_the_outcomes(levels, outcomes, tone, words, tmp_path):
    _, found, said = judged(tmp_path, **levels)
    assert {name: c.outcome for name, c in found.items()} == outcomes
    assert said.tone == tone
    assert all(word in said.sentence for word in words), said.sentence


def test_the_best_of_several_better_rivals_is_named_and_the_others_are_noted(tmp_path):
    _, _, said = judged(tmp_path, target=-0.1, sequential=-0.4, merged=0.0, grasp=0.0)
    assert said.sentence.startswith("“Target fine-tuned from source” is better")
    assert "Also better than GRASP: “target adapter only”." in said.notes
    assert "No difference can be shown from: “merged, not pruned”." in said.notes
    assert any("40 test examples" in note and "seeds" in note for note in said.notes)


@pytest.mark.parametrize(
    ("levels", "missing"),
    [
        ({"target": 0.3, "grasp": 0.0}, "“target fine-tuned from source” and “merged, not pruned”"),
        ({"target": 0.3, "sequential": 0.1, "grasp": 0.0}, "Not tried: “merged, not pruned”,"),
        ({"merged": 0.3, "sequential": 0.1, "grasp": 0.0}, None),
    ],
)
def test_rivals_that_were_not_tried_are_said(levels, missing, tmp_path):
    _, _, said = judged(tmp_path, **levels)
    untried = [note for note in said.notes if note.startswith("Not tried")]
    assert [missing in note for note in untried] == ([True] if missing else [])


def test_differences_are_those_of_the_paired_bootstrap(tmp_path):
    record, found, _ = judged(tmp_path, target=0.3, grasp=0.0)
    ours, theirs = (np.array([row["loss"] for row in record.predictions[name]]) for name in ("grasp", "target"))
    assert found["target"].loss == paired_bootstrap(ours, theirs, resamples=200, seed=7)
    assert found["target"].loss.difference == pytest.approx((ours - theirs).mean())
    assert found["target"].rival_loss == pytest.approx(theirs.mean())


def test_a_score_that_contradicts_the_loss_is_said(tmp_path):
    run = write_run(tmp_path / "run", {"target": 0.3, "grasp": 0.0})
    path = run / "stages" / "evaluate_target" / "predictions.jsonl"
    write_lines(path, [row | {"f1": 80.0 + row["loss"]} for row in rows(0.3)])
    record = read_run(run)
    notes = verdict(record, compare(record)).notes
    assert any("By F1 GRASP is worse than “target adapter only”: -31." in note for note in notes)


def test_scores_are_compared_on_the_examples_that_both_answered(tmp_path):
    run = write_run(tmp_path / "run", {"target": 0.3, "grasp": 0.0})
    path = run / "stages" / "evaluate_target" / "predictions.jsonl"
    found = rows(0.3)
    for row in found[25:]:
        del row["f1"], row["prediction"]
    write_lines(path, found)
    record = read_run(run)
    (comparison,) = compare(record)
    assert (comparison.loss.n, comparison.scores["f1"].n) == (40, 25)
    answered = {row["id"] for row in found[:25]}
    assert {example.id for example in side_by_side(record, [comparison])} <= answered


def test_systems_on_other_examples_are_not_compared(tmp_path):
    run = write_run(tmp_path / "run", {"target": 0.3, "merged": 0.1, "grasp": 0.0})
    path = run / "stages" / "evaluate_target" / "predictions.jsonl"
    write_lines(path, [row | {"id": f"other{k}"} for k, row in enumerate(rows(0.3))])
    assert [c.rival for c in compare(read_run(run))] == ["merged"]


def test_what_cannot_be_judged_is_not(tmp_path):
    record, found, said = judged(tmp_path, grasp=0.0)
    assert (found, said.tone) == ({}, "none")
    assert "no other method was" in said.sentence
    unscored = read_run(write_run(tmp_path / "unscored", {}))
    said = verdict(unscored, compare(unscored))
    assert "Nothing was scored on a test split" in said.sentence
    assert f"Learned: prune ratio {unscored.result('search')['p_star']:.2f}." in said.sentence


def test_a_run_at_work_is_not_judged(run):
    (run / "stages" / "finalize" / "result.json").unlink()
    for name in SYSTEMS:
        (run / "stages" / f"evaluate_{name}" / "result.json").unlink()
    record = read_run(run)
    said = verdict(record, compare(record))
    assert said.tone == "none"
    assert "not finished (it is at: final run" in said.sentence


def test_a_loss_that_is_not_finite_is_told_and_not_compared(run):
    stage = run / "stages" / "evaluate_zero_shot"
    write_lines(stage / "predictions.jsonl", [row | {"loss": float("inf")} for row in rows(0.0)])
    result = json.loads((stage / "result.json").read_text())
    result["scores"][0] |= {"value": "Infinity", "interval": ["NaN", "NaN"]}
    (stage / "result.json").write_text(json.dumps(result))
    content = run_content(read_run(run), "run1", "one")
    assert "zero_shot" not in {c.rival for c in content.comparisons}
    assert any(note.startswith("“zero shot” is not compared") for note in content.verdict.notes)
    scores = content.sections[0]
    assert scores.tables[0].rows[0][:2] == ["zero shot", "inf [nan, nan]"]
    assert "zero shot" not in scores.figures[0].alt


def test_what_the_checks_found_is_said_beside_the_verdict(record):
    notes = verdict(record, compare(record)).notes
    assert "The controller's checks found something (warning: mask_thrashing): see the diagnostics." in notes
