"""The committed comparisons: settings that run, and a page that says what the records say."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import fmean

import pytest
from world import write_rows

from grasp_lora.baselines import METHODS
from grasp_lora.config import build_config, load_config, parse_yaml
from grasp_lora.errors import ConfigError
from grasp_lora.pipeline.comparison.agenda import Agenda
from grasp_lora.pipeline.comparison.parts import parts_of
from grasp_lora.pipeline.comparison.schedule import Results
from grasp_lora.pipeline.comparison.units import cells_of, needed_splits, rows_of
from grasp_lora.report.comparison_page import page
from pico import pico_rows

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "benchmarks" / "compare"
SHARED = ROOT.parent / "shared"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    return module.main()


# --- settings ---------------------------------------------------------------------------------------------------


def test_the_demo_comparison_names_what_the_script_writes(tmp_path, monkeypatch):
    module = script("world_files")
    monkeypatch.setattr(module, "demo_splits", lambda task, *_: {"train": [{"a": task}], "source_dev": []})
    run_script(module, monkeypatch, "--out", tmp_path, "--languages", "ar")
    assert (tmp_path / "qa" / "ar" / "train.jsonl").read_text() == '{"a": "qa"}\n'
    assert {path.name for path in tmp_path.rglob("*.jsonl")} == {"train.jsonl", "source-dev.jsonl"}
    config = load_config(SETTINGS / "demo.yaml")
    assert config.compare.reference in {row.name for row in rows_of(config)}
    (cell,) = cells_of(config, 42)
    files = [*cell.config.data.source.model_dump().values(), *cell.config.data.target.model_dump().values()]
    splits = ("source_train", "source_dev", "train", "dev", "micro_dev", "test")
    assert {path for path in files if path} == {
        f"runs/world/qa/ar/{script('world_files').file_name(s)}" for s in splits
    }


def test_every_part_of_the_real_comparison_can_be_run(tmp_path):
    parts = parts_of(load_config(SETTINGS / "real.yaml", [f"run.dir={tmp_path}"]))
    assert [part.name for part in parts] == ["", "curves", "policies", "ablations", "micro-dev"]
    agenda = Agenda(tmp_path, parts)
    units = agenda.known()
    units += agenda.more(Results(failures=dict.fromkeys(unit.key for unit in units)))
    assert len({unit.key for unit in units}) == len(units) == agenda.size


@pytest.fixture
def tiny(tmp_path, pico_folder, monkeypatch):
    """The script for real tasks with one cell, few epochs and the pico model: `tiny(...)` runs it."""
    module = script("real_comparison")
    tree = parse_yaml((SETTINGS / "real.yaml").read_text(encoding="utf-8"), "real.yaml")
    tree["compare"] |= {"cells": tree["compare"]["cells"][:1], "jobs": 1, "lrs": [0.001], "reference": "grasp_default"}
    tree["task"] |= {"prompt": "{context} {question}=", "source_prompt": "{context} {question}=", "max_new_tokens": 2}
    tree["evaluate"] |= {"bootstrap": 20}
    for stage in ("train_target", "search", "finalize"):
        tree[stage]["epochs"] = 2
    tree["controller"] = {"interval": 2, "early_stop": False}
    changed = tmp_path / "real.yaml"
    changed.write_text(json.dumps(tree))
    monkeypatch.setattr(module, "SETTINGS", changed)
    counts = {"ar/train": 6, "ar/dev": 3, "ar/micro_dev": 3, "ar/test": 3, "en/train": 8, "en/dev": 3}
    for name, count in counts.items():
        write_rows(tmp_path / "data" / "qa" / f"{name}.jsonl", pico_rows(count, name.replace("/", "")))
    write_rows(tmp_path / "data" / "qa" / "ar" / "micro_dev_32.jsonl", pico_rows(32, "armicro_dev"))

    def run(*words):
        places = ("--backbone", pico_folder, "--data", tmp_path / "data", "--out", tmp_path / "out")
        return run_script(module, monkeypatch, *places, "--seeds", 42, *words)

    run.out = tmp_path / "out"
    return run


def test_the_real_comparison_runs_and_goes_on(tiny, capsys):
    assert tiny("--methods", "zero_shot,grasp_default") == 0
    assert tiny("--methods", "zero_shot,merged,grasp_default") == 0
    assert "merged, not pruned, fine-tuned" in capsys.readouterr().out
    records = json.loads((tiny.out / "results.json").read_text())
    rows = {row["row"]: row for row in records["cells"][0]["rows"]}
    # Generation for those that real.yaml lists, and a difference to the recommended method for all others.
    assert set(rows["zero_shot"]["scores"]) == {"loss", "em", "f1"}
    assert set(rows["merged"]["against"]) == {"loss", "em", "f1"}


def test_all_parts_share_their_runs(tiny, tmp_path, capsys):
    assert tiny("--no-tables", "--parts", "curves,ablations,micro-dev") == 0
    assert capsys.readouterr().out == ""
    assert not (tiny.out / "results.json").exists()
    before = (tiny.out / "manifest.json").read_bytes()
    records = tmp_path / "records"
    assert tiny("--tables-only", "--parts", "curves,ablations,micro-dev", "--records", records) == 0
    assert (tiny.out / "manifest.json").read_bytes() == before
    found = {path.stem: json.loads(path.read_text()) for path in records.iterdir()}
    assert set(found) == {"real", "real-curves", "real-ablations", "real-micro-dev"}
    assert all(record["failed"] == [] and record["missing"] == 0 for record in found.values())
    rows = {row["row"]: row for row in found["real-curves"]["cells"][0]["rows"]}
    assert set(rows["grid"]["seeds"][0]["hindsight"]) == {f"p={step / 10:g}" for step in range(1, 9)}
    assert set(rows["curve"]["seeds"][0]["hindsight"]) == {"p=0", "p=0.9", "p=0.95"}
    assert rows["curve"]["lr"] == rows["grid"]["lr"]
    assert len(found["real-ablations"]["cells"][0]["rows"]) == 9
    sizes = {cell["name"]: cell["rows"][0]["seeds"][0]["cost"]["labels"]["micro_dev"]
             for cell in found["real-micro-dev"]["cells"]}  # fmt: skip
    assert sizes == {"qa-ar": 3, **{f"qa-ar-m{size}": size for size in (4, 8, 32)}}
    assert len(found["real-micro-dev"]["adapters"]) == 2  # the cells differ in micro-dev only: they share both
    assert len(list((tiny.out / "stages").glob("qa-ar.42.grasp_default.*"))) == 1


# --- fresh draws ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A data folder of one cell, 60 questions on 20 documents for its test, and what two seeds drew from them."""
    module = script("fresh_draws")
    monkeypatch.setattr(module, "CELLS", ("qa/ar",))
    monkeypatch.setattr(module, "SOURCES", ("qa/en",))
    test = pico_rows(60, "artest")
    for index, row in enumerate(test):
        row["context"] = f"context {index // 3}"
    rows = {"ar/test": test, "en/train": pico_rows(8, "entrain"), "en/dev": pico_rows(3, "endev")}
    rows |= {f"ar/{name}": pico_rows(size, name) for name, size in (("train", 5), ("dev", 4), ("micro_dev", 3))}
    for name, each in rows.items():
        write_rows(tmp_path / "data" / "qa" / f"{name}.jsonl", each)

    def run(*words):
        return run_script(module, monkeypatch, "--data", tmp_path / "data", "--out", tmp_path / "draws", *words)

    run.out = tmp_path / "draws"
    return run


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_fresh_draws_share_no_document_and_no_example_with_the_new_test_file(drawn):
    assert drawn("--seeds", 7, 8) == 0
    test = read_rows(drawn.out / "qa" / "ar" / "test.jsonl")
    assert len(test) == 30
    chosen = []
    for seed in (7, 8):
        splits = {
            s: read_rows(drawn.out / str(seed) / "qa" / "ar" / f"{s}.jsonl") for s in ("train", "dev", "micro_dev")
        }
        assert {name: len(rows) for name, rows in splits.items()} == {"train": 5, "dev": 4, "micro_dev": 3}
        documents = [{row["context"] for row in rows} for rows in (*splits.values(), test)]
        assert sum(map(len, documents)) == len(set.union(*documents))
        assert [len(each) for each in documents[:3]] == [5, 2, 1]  # one example a document for training, else whole
        chosen.append(splits)
    assert chosen[0] != chosen[1]
    assert drawn("--seeds", 7) == 0
    assert read_rows(drawn.out / "qa" / "ar" / "test.jsonl") == test
    assert read_rows(drawn.out / "7" / "qa" / "ar" / "train.jsonl") == chosen[0]["train"]


def test_too_small_a_test_file_is_one_line_and_an_exit_code(drawn, tmp_path, capsys):
    write_rows(tmp_path / "data" / "qa" / "ar" / "test.jsonl", pico_rows(20, "artest"))
    assert drawn() == 3
    assert capsys.readouterr().err.startswith("error: qa/ar: too few documents for train in half of test.jsonl (10)")


def test_a_line_that_is_no_json_is_one_line_and_an_exit_code(drawn, tmp_path, capsys):
    path = tmp_path / "data" / "qa" / "ar" / "dev.jsonl"
    path.write_text(path.read_text() + "{no}\n", encoding="utf-8")
    assert drawn() == 3
    assert capsys.readouterr().err.startswith(f"error: {path}, line 5: not valid JSON")
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    assert drawn() == 3
    assert capsys.readouterr().err.startswith(f"error: {path}, line 1: there is no document")
    assert not drawn.out.exists()


def test_a_file_with_other_content_is_not_overwritten(drawn, capsys):
    other = drawn.out / "8" / "qa" / "ar" / "dev.jsonl"
    write_rows(other, pico_rows(2, "other"))
    before = other.read_bytes()
    assert drawn("--seeds", 7, 8) == 6
    assert capsys.readouterr().err.startswith(f"error: {other} exists with other content and is not overwritten")
    assert other.read_bytes() == before
    assert not (drawn.out / "7").exists()


def test_the_halves_and_the_draws_of_the_record_stay_and_seed_0_has_a_stream_of_its_own(monkeypatch):
    module, asked = script("fresh_draws"), []
    stream = module.derive_seed
    monkeypatch.setattr(module, "derive_seed", lambda *named: asked.append(stream(*named)) or asked[-1])
    rows = [{"context": f"context {index}"} for index in range(40)]
    pool, _ = module.halves(rows, "qa/ar")
    for seed in (0, *module.SEEDS):
        module.draw(pool, {"train": 3, "dev": 2, "micro_dev": 1}, seed, "qa/ar")
    halved, zero, *committed = asked
    assert zero != halved
    assert [halved, *committed] == [stream(seed, "fresh draw qa/ar") for seed in (0, *module.SEEDS)]


def test_every_seed_of_the_fresh_comparison_has_data_of_its_own(tiny, drawn, tmp_path, monkeypatch, capsys):
    assert drawn("--seeds", 7, 8) == 0
    tree = parse_yaml((SETTINGS / "fresh.yaml").read_text(encoding="utf-8"), "fresh.yaml")
    tree["compare"] |= {"cells": tree["compare"]["cells"][:1], "jobs": 1, "lrs": [0.001]}
    tree["compare"] |= {"methods": ["target", "grasp_recommended"], "generate": []}
    tree["compare"]["parts"][0] |= {"methods": ["grid", "curve", "grasp_default"]}
    (tmp_path / "fresh.yaml").write_text(json.dumps(tree))
    words = ("--settings", tmp_path / "fresh.yaml", "--data", drawn.out, "--seeds", 7, 8)
    assert tiny(*words, "--records", tmp_path / "records") == 0
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()}
    assert set(found) == {"fresh", "fresh-curves"}
    assert all(record["failed"] == [] and record["missing"] == 0 for record in found.values())
    inputs = json.loads((tiny.out / "manifest.json").read_text())["inputs"]
    own = {f"qa-ar.8.data.target.{split}" for split in ("train", "dev", "micro_dev")}
    assert own == {name for name in inputs if name.startswith("qa-ar.8.")}
    module = script("results_page")
    pages = module.pages_of(found)
    assert "##" not in pages["results.md"]
    text = pages["results-fresh.md"]
    assert text.startswith("# The comparison on fresh draws")
    assert "| GRASP default, controller.policy=ratio | " in text
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Over all draws", "Methods", "True curves of the prune ratio",
    ]  # fmt: skip
    ours, theirs = ([seed["scores"]["loss"] for seed in row["seeds"]] for row in found["fresh"]["cells"][0]["rows"])
    shown = re.search(r"^\| target adapter only \| .* \| ([\d.]+) \| ([+-][\d.]+) \[", text, flags=re.MULTILINE)
    assert shown.groups() == (f"{fmean(ours):.3f}", f"{fmean(ours) - fmean(theirs):+.4f}")


def test_seeds_with_test_files_of_their_own_are_refused():
    cell = {"name": "a", "target": {"test": "{seed}/test.jsonl"}}
    with pytest.raises(ConfigError, match="one test file for all seeds"):
        build_config({"compare": {"cells": [cell]}})


def test_a_mistake_is_one_line_and_an_exit_code(tiny, capsys):
    assert tiny("--methods", "nothing") == 2
    assert capsys.readouterr().err.startswith("error: compare.methods: unknown method 'nothing'")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_the_real_cells_are_there():
    config = load_config(SETTINGS / "real.yaml", [f"compare.root={SHARED / 'data'}"])
    methods = [row.method for row in rows_of(config)]
    for cell in cells_of(config, 42):
        for name in needed_splits(cell.config, methods):
            side, split = name.split(".")
            assert Path(getattr(getattr(cell.config.data, side), split)).is_file()


def test_the_document_lists_every_method_as_it_is_registered():
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.MULTILINE))
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        title, formula, labels, source = rows[name].split(" | ")
        assert (title, formula) == (method.title, method.formula)
        assert labels == (", ".join(method.labels) or "none")
        assert source == "this page" or f"({method.source.partition(',')[0]})" in source


# --- the page ---------------------------------------------------------------------------------------------------


def committed():
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(SETTINGS.glob("*.json"))}


def test_the_page_is_what_the_records_say(monkeypatch, tmp_path, capsys):
    module = script("results_page")
    assert run_script(module, monkeypatch, "--check") == 0
    monkeypatch.setattr(module, "DOCS", tmp_path)
    assert run_script(module, monkeypatch, "--check") == 1
    assert "python scripts/results_page.py" in capsys.readouterr().err
    assert run_script(module, monkeypatch) == 0
    apart = (module.CURVES, module.FRESH, module.FRESH_CURVES)
    shown = {name: record for name, record in committed().items() if name not in apart}
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page(shown, module.TITLES)
    plots = {f"compare-{name}" for name in committed() if name not in (module.CURVES, module.FRESH_CURVES)}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == plots
    assert (tmp_path / "results-curves.md").exists()


@pytest.mark.parametrize("name", ["fresh", "fresh-curves"])
def test_one_of_the_two_records_of_fresh_draws_is_told(name, monkeypatch, tmp_path, capsys):
    module = script("results_page")
    (tmp_path / f"{name}.json").write_bytes((SETTINGS / f"{name}.json").read_bytes())
    monkeypatch.setattr(module, "RECORDS", tmp_path)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    assert run_script(module, monkeypatch) == 6
    assert capsys.readouterr().err.startswith(f"error: {name}.json is there without ")
    assert not (tmp_path / "docs").exists()


def test_committed_records_name_no_place_of_a_machine():
    for record in committed().values():
        text = json.dumps(record)
        assert not any(start in text for start in ('"/', "/tmp/", "/home/", "/work/", "/root/"))
        assert record["failed"] == []
