"""The commands, each starting from what an earlier one left; exit codes and messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from world import lines, tree_bytes, with_peft, write_rows

from grasp_lora.cli.facts import show_facts
from grasp_lora.config import load_config, parse_yaml

FAST = {"evaluate__rivals": ["zero_shot", "target"], "finalize__epochs": 1}


def mapped(text):
    """The `name: value` lines of a stage's result."""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def test_the_stages_one_after_the_other(world, cli):
    file, run = world.file(**FAST), world.root / "run"
    source = cli("train-adapter", "--role", "source", "-c", file, "-q", "--json")
    assert (source.code, source.err) == (0, "")
    assert json.loads(source.out)["adapter"] == str(run / "stages" / "source_adapter" / "adapter")
    kept = tree_bytes(run / "stages" / "source_adapter")

    found = json.loads(cli("search", "-c", file, "-q", "--json").out)
    assert tree_bytes(run / "stages" / "source_adapter") == kept
    assert (run / "stages" / "target_adapter" / "result.json").is_file()  # trained on the way, since it was missing

    final = json.loads(cli("finalize", "-c", file, "-q", "--json").out)
    assert final["ratio"] == found["p_star"]

    scores = json.loads(cli("evaluate", "-c", file, "-q", "--json").out)
    assert list(scores) == ["zero_shot", "target", "grasp"]
    exported = mapped(cli("export", "-c", file, "-q").out)
    assert exported["adapter"] == "export/adapter"
    assert with_peft(world.model, run / exported["adapter"]).peft_config["default"].r == 2

    # The whole run then only gathers.
    whole = cli("run", "-c", file, "--resume", "-q", "--json")
    results = json.loads(whole.out)
    assert (results["p_star"], results["systems"]) == (found["p_star"], scores)


def test_what_is_made_from_something_else_is_not_passed_off_as_the_same(world, cli):
    file, run = world.file(**FAST), world.root / "run"
    cli("finalize", "--ratio", "0.25", "-c", file, "-q")
    cli("evaluate", "-c", file, "-q")
    cli("export", "-c", file, "-q")
    before = tree_bytes(run)
    other = cli("finalize", "--ratio", "0.5", "-c", file, "-q")
    assert other.code == 6
    assert "ratio: 0.25 there, 0.5 now" in other.error
    assert "--overwrite" in other.error
    assert tree_bytes(run) == before

    again = mapped(cli("finalize", "--ratio", "0.5", "--overwrite", "-c", file, "-q").out)
    assert again["ratio"] == "0.5"
    stale = cli("evaluate", "-c", file, "-q")
    assert (stale.code, "evaluate_grasp was made from something else" in stale.error) == (6, True)
    assert cli("export", "-c", file, "-q").code == 6
    assert cli("evaluate", "--overwrite", "-c", file, "-q").code == 0
    assert cli("export", "--overwrite", "-c", file, "-q").code == 0
    assert cli("evaluate", "-c", file, "-q").code == 0


def test_a_stage_that_cannot_start_removes_nothing(world, cli):
    file, run = world.file(**FAST), world.root / "run"
    cli("finalize", "--ratio", "0.25", "-c", file, "-q")
    before = tree_bytes(run)
    without = cli("finalize", "--overwrite", "-c", file, "-q")
    assert (without.code, "no learned ratio" in without.error, "--ratio" in without.error) == (6, True, True)
    assert tree_bytes(run) == before
    bad = cli("finalize", "--ratio", "65", "--overwrite", "-c", file)
    assert (bad.code, "0.65" in bad.error) == (2, True)
    assert tree_bytes(run) == before


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_without_a_final_run_there_is_nothing_to_do(command, world, cli, no_weights):
    said = cli(command, "-c", world.file())
    assert (said.code, "no final run" in said.error, "grasp-lora finalize" in said.error) == (6, True, True)


def test_each_adapter_is_scored_by_itself(world, cli):
    file = world.file(data__source=None, adapters__source="x", adapters__target="y")
    file.write_text(
        json.dumps(world.settings(data__source=None, data__target={"test": str(world.data / "test.jsonl")}))
    )
    first, second = world.adapter("first"), world.adapter("second", r=3)
    scores = [json.loads(cli("evaluate", "--adapter", a, "-c", file, "-q", "--json").out) for a in (first, second)]
    losses = [found["adapter"]["scores"][0]["value"] for found in scores]
    assert losses[0] != losses[1]
    again = cli("evaluate", "--adapter", first, "-c", file, "-q", "--json")
    assert json.loads(again.out) == scores[0]
    assert cli("evaluate", "--adapter", first, "--overwrite", "-c", file, "-q", "--json").out == again.out
    shown = cli("evaluate", "--adapter", first, "-c", file, "-q")
    assert "loss: n=3, answer-token cross-entropy" in shown.out


def test_train_adapter_needs_its_own_data_only(world, cli):
    file = world.file(data__target=None)
    said = cli("train-adapter", "--role", "source", "-c", file, "-q")
    assert (said.code, said.err) == (0, "")
    missing = cli("train-adapter", "--role", "target", "-c", file, "-q")
    assert (missing.code, "data.target.train is not set" in missing.error) == (3, True)
    assert "--role must be source or target" in cli("train-adapter", "--role", "sauce", "-c", file).error
    named = cli("train-adapter", "-c", file, "--set", f"adapters.target={world.root}")
    assert (named.code, "adapters.target names an adapter already" in named.error) == (2, True)


def test_generate_answers_a_file_or_a_prompt(world, cli, tmp_path):
    adapter, file = world.adapter("en"), world.file(data=None)
    rows = [{"id": "a", "context": "ab cd", "question": "what?"}, {"id": "b", "context": "x", "question": "y?"}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    shown = cli("generate", "--adapter", adapter, "--input", source, "-c", file, "-q")
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["id"] for row in answers] == ["a", "b"]
    out = tmp_path / "out.jsonl"
    assert cli("generate", "--adapter", adapter, "--input", source, "--output", out, "-c", file, "-q").out == ""
    assert lines(out) == answers
    prompt = cli("generate", "--adapter", adapter, "--prompt", "ab cd what?=", "-c", file, "-q")
    assert json.loads(prompt.out) == {"prompt": "ab cd what?=", "prediction": answers[0]["prediction"]}
    bare = cli("generate", "--prompt", "ab cd what?=", "-c", file, "-q")
    assert json.loads(bare.out)["prediction"] != answers[0]["prediction"]


def test_generate_refuses_before_the_weights(world, cli, no_weights, tmp_path):
    file = world.file(data=None)
    assert "either --input FILE or --prompt TEXT" in cli("generate", "-c", file).error
    assert cli("generate", "--prompt", "a", "--input", "b", "-c", file).code == 2
    other = cli("generate", "--prompt", "a", "--adapter", world.adapter("en", base="x/other"), "-c", file)
    assert (other.code, "other" in other.error) == (4, True)
    assert cli("generate", "--prompt", "a", "--adapter", tmp_path / "nowhere", "-c", file).code == 4
    assert cli("generate", "--input", tmp_path / "nowhere.jsonl", "-c", file).code == 3
    long = write_rows(tmp_path / "long.jsonl", [{"context": "x", "question": "y" * 200}])
    assert "task.max_length" in cli("generate", "--input", long, "-c", file).error


def test_print_config_is_the_resolved_configuration(world, cli, tmp_path):
    file = world.file()
    said = cli("run", "-c", file, "--set", "controller.p_max=0.75", "-s", "seed=7", "--print-config")
    printed = tmp_path / "printed.yaml"
    printed.write_text(said.out)
    assert load_config(printed) == load_config(file, ["controller.p_max=0.75", "seed=7"])
    assert parse_yaml(said.out, "")["controller"]["candidates"] == 2
    assert not (world.root / "run").exists()


def test_run_prints_scores_ratio_and_how_to_load(world, cli):
    said = cli("run", "-c", world.file(evaluate__rivals=["zero_shot"], evaluate__deployment=True))
    assert said.code == 0
    for words in (
        "GRASP",
        "learned ratio",
        "PeftModel.from_pretrained",
        "tokens/s",
        str(world.root / "run" / "export"),
    ):
        assert words in said.out
    assert "search" in said.err  # progress, as plain lines
    assert (world.root / "run" / "config.yaml").is_file()


def test_validate_shows_all_problems_at_once(world, cli, no_weights):
    (world.data / "dev.jsonl").write_text("")
    (world.data / "train.jsonl").write_bytes(b"\xff\xfe")
    file = world.file(
        adapters__target=world.root / "nowhere", adapters__source=world.adapter("en", base="x/other"),
        model__device="cuda:7", task__prompt="no placeholder",
    )  # fmt: skip
    said = cli("validate", "-c", file, "--json")
    assert said.code == 2
    failed = {row["what"]: row["error"] for row in json.loads(said.out) if row["error"]}
    assert set(failed) == {
        "device", "prompts", "data.target.train", "data.target.dev", "adapter source", "adapter target",
    }  # fmt: skip
    shown = cli("validate", "-c", file)
    assert shown.code == 2
    for message in failed.values():
        assert " ".join(message.split()) in " ".join(shown.out.split())
    assert not (world.root / "run").exists()


def test_validate_names_a_split_that_is_not_set_once(world, cli, no_weights):
    said = cli("validate", "-c", world.file(data__target__micro_dev=None))
    assert said.code == 3
    shown = " ".join(said.out.split())
    assert "error data.target.micro_dev is not set, and this stage needs it" in shown
    assert "ok data.target.train: 6 examples" in shown
    assert "ok leakage: no text is in two of the 5 splits that were read" in shown


def test_validate_says_what_is_there(world, cli, no_weights):
    said = cli("validate", "-c", world.file(task__max_length=32, adapters__target=world.adapter("ar")), "--json")
    seen = {row["what"]: row["seen"] for row in json.loads(said.out)}
    assert said.code == 0
    assert "LlamaForCausalLM" in seen["model"]
    assert "new adapters attach to 4 modules" in seen["model"]
    assert seen["data.target.micro_dev"] == "3 examples"
    # bytes are tokens: begin, prompt, blank, answer, end
    rows = lines(world.data / "train.jsonl")
    lengths = [len(f"<{row['context']} {row['question']}= {row['answer']}>") for row in rows]
    cut = sum(length > 32 for length in lengths)
    assert 0 < cut < 6
    assert (
        f"{cut} of 6 documents were cut to 32 tokens (the longest has {max(lengths)})" in seen["lengths target.train"]
    )
    assert "rank 2" in seen["adapter target"]
    assert seen["merge"] == "sum_factors of 2 adapters"


def test_data_prepare_writes_splits_and_a_manifest(cli, tmp_path):
    rows = [{"context": f"text {i // 2}", "question": f"q{i}?", "answer": "a"} for i in range(40)]
    source, out = write_rows(tmp_path / "all.jsonl", rows), tmp_path / "out"
    words = ("data", "prepare", source, "--out", out, "--sizes", "train=6,dev=4,micro_dev=2,test=4", "--seed", "3")
    said = cli(*words, "--json")
    assert said.code == 0
    contexts = {name: {row["context"] for row in lines(out / f"{name}.jsonl")} for name in ("train", "dev", "test")}
    assert [len(lines(out / f"{name}.jsonl")) for name in ("train", "dev", "micro_dev", "test")] == [6, 4, 2, 4]
    assert not contexts["train"] & contexts["dev"]
    assert not contexts["train"] & contexts["test"]
    assert str(tmp_path) not in said.out
    before = tree_bytes(out)
    shown = cli(*words, "--overwrite").out
    assert not set('{}[]"') & set(shown)
    assert re.search(r"micro_dev +2 +\d +micro_dev\.jsonl", shown)
    assert "read 40 examples from all.jsonl" in shown
    assert f"written to {out}" in shown
    assert tree_bytes(out) == before
    assert cli(*words).code == 3
    assert tree_bytes(out) == before
    assert cli(*words, "--overwrite").code == 0
    assert tree_bytes(out) == before
    assert "--sizes: 'train' needs a whole number, got 'x'" in cli(*words[:5], "--sizes", "train=x").error
    assert "--task must be qa" in cli(*words[:5], "--task", "poetry").error
    assert "name=value" in cli(*words[:5], "--field", "context").error


def test_init_says_what_to_fill_in_and_what_comes_next(cli, tmp_path):
    said = cli("init", "--language", "de", "--out", tmp_path / "my.yaml")
    first, *names, last = said.out.splitlines()
    assert first == f"{tmp_path / 'my.yaml'} is written. To fill in, marked FILL:"
    text = (tmp_path / "my.yaml").read_text(encoding="utf-8")
    marked = [line.split(":")[0].strip() for line in text.splitlines() if " FILL" in line and not line.startswith("#")]
    assert [name.rpartition(".")[2] for name in map(str.strip, names)] == marked
    assert last == f"Then: grasp-lora validate --config {tmp_path / 'my.yaml'}"


def test_facts_are_lines_not_structures(capsys):
    facts = {"adapter": "a/b", "losses": [1.23456789, 2.0], "point": {"ratio": 0.5, "weights": {}}, "sparse": None}
    show_facts(facts | {"kept": True}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "adapter: a/b", "losses: 1.23457, 2", "point:", "  ratio: 0.5", "  weights: none", "sparse: none", "kept: yes",
    ]  # fmt: skip


def test_unknown_settings_name_the_nearest(world, cli):
    said = cli("run", "-c", world.file(), "--set", "controler.interval=3")
    assert (said.code, "controller" in said.error) == (2, True)
    said = cli("validate", "-c", world.root / "nowhere.yaml")
    assert (said.code, "does not exist" in said.error) == (2, True)


def test_version_and_usage(cli):
    assert cli("--version").out.startswith("grasp-lora 0.")
    assert cli("run", "--nonsense").code == 2
    assert cli("--help").code == 0


def test_a_program_sees_only_results_on_standard_output_and_no_bars(world):
    """The one test through a process: imports, warnings and bars of other packages included."""
    words = [sys.executable, "-m", "grasp_lora", "run", "-c", str(world.file(data__target__test=None)), "--json", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(world.root / "run")
    assert done.stderr == ""


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(world):
    file = world.file(search__epochs=100000, controller__interval=1000000, data__target__test=None)
    words = [sys.executable, "-m", "grasp_lora", "run", "-c", str(file)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    events = world.root / "run" / "stages" / "search" / "events.jsonl"
    limit = time.monotonic() + 100
    while not (events.is_file() and events.stat().st_size) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped after step" in err
    assert "Go on with --resume" in err
    assert list((world.root / "run" / "stages" / "search" / "checkpoints").iterdir())
