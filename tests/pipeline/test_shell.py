"""A configuration to start from, the look at the installation, completion, and what every command offers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import typer

from grasp_lora.cli import app
from grasp_lora.config import Config, build_config, load_config, parse_yaml, setting_names
from grasp_lora.errors import exit_codes
from grasp_lora.pipeline import doctor

# --- init -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "language"), [("qa", "ar"), ("summarization", "zh"), ("qa", "sw")])
def test_init_writes_what_loads_with_only_the_marked_settings_changed(task, language, cli, tmp_path):
    path = tmp_path / "my.yaml"
    said = cli("init", "--task", task, "--language", language, "--out", path, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["config"] == str(path)
    config = load_config(path)
    assert (config.task.name, config.task.language) == (task, language)
    default = build_config({"recipe": "recommended", "task": {"name": task, "language": language}})
    changed = [name for name in setting_names() if value(config, name) != value(default, name)]
    assert changed == found["fill_in"]
    marked = [line for line in path.read_text(encoding="utf-8").splitlines() if "# FILL" in line]
    assert len(marked) == len(changed)
    assert ("task.prompt" in changed) == (language == "sw")


def value(config: Config, name: str) -> object:
    node: object = config
    for part in name.split("."):
        node = getattr(node, part)
    return node


def test_every_setting_of_the_template_is_there_once_and_at_its_default(cli, tmp_path):
    path = tmp_path / "my.yaml"
    assert cli("init", "--out", path).code == 0
    text = path.read_text(encoding="utf-8")
    all_in_force = "\n".join(line.removeprefix("# ") for line in text.splitlines())
    assert build_config(parse_yaml(all_in_force, "template")) == load_config(path)
    assert names_in(parse_yaml(all_in_force, "template")) == setting_names()
    assert names_in(parse_yaml(text, "template")) != setting_names()


def names_in(tree: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" != "data.fields"
        names += names_in(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return names


def test_init_overwrites_only_when_asked(cli, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("seed: 1", encoding="utf-8")
    said = cli("init", "--out", path)
    assert said.code == 6
    assert "--overwrite" in said.error
    assert path.read_text(encoding="utf-8") == "seed: 1"
    assert cli("init", "--out", path, "--overwrite").code == 0
    assert load_config(path).seed == 42


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["init", "--task", "summarisation"], "Did you mean 'summarization'?"),
        (["data", "prepare", "x.jsonl", "--out", "o", "--task", "q"], "must be qa or summarization, got 'q'."),
        (["train-adapter", "--role", "sorce"], "Did you mean 'source'?"),
        (["run", "--set", "prune.importance=magnitud"], "(got 'magnitud'). Did you mean 'magnitude'? Correct it"),
        (["run", "--report-to", "wanb"], "run.report_to: "),
        (["run", "--report-to", "wanb"], "Did you mean 'wandb'?"),
        (["run", "--set", "evaluate.rivals=[sorce]"], "--set evaluate.rivals=VALUE"),
    ],
)
def test_a_value_that_is_nearly_right(words, hint, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cli(*words)
    assert said.code == 2
    assert hint in said.error


def test_a_section_without_settings_is_at_its_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("merge:\ndata:\n  source:\n  target:\n    train: a\ntrain_source:\n", encoding="utf-8")
    assert load_config(path) == build_config({"data": {"target": {"train": "a"}}})


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_tells_what_is_there(cli, tmp_path):
    said = cli("doctor", "--json", "--set", f"run.dir={tmp_path / 'not' / 'yet'}")
    assert said.code == 0, said.out
    found = json.loads(said.out)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["system"]["threads"] == torch.get_num_threads()
    assert found["free_disk_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert found["demo_backbone"] == "intact"
    assert found["problems"] == []
    assert set(found["extras"]) == set(metadata.metadata("grasp-lora").get_all("Provides-Extra")) - {"dev", "docs"}
    assert len(found["gpus"]) == torch.cuda.device_count()
    shown = cli("doctor").out
    assert metadata.version("torch") in shown
    assert "demo backbone: intact" in shown


def test_doctor_says_how_to_install_what_is_missing(cli, monkeypatch):
    version = metadata.version

    def without(name):
        if name in ("bert-score", "datasets"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    said = cli("doctor", "--json")
    extras = json.loads(said.out)["extras"]
    assert said.code == 0
    assert extras["bertscore"] == {
        "installed": False, "packages": {"bert-score": None}, "how": "pip install 'grasp-lora[bertscore]'",
    }  # fmt: skip
    shown = cli("doctor").out
    assert "pip install 'grasp-lora[data]'" in shown


def test_doctor_refuses_versions_that_are_too_old(cli, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.40.0" if name == "transformers" else version(name))
    said = cli("doctor")
    assert said.code == 5
    assert "transformers" in said.out.partition("error ")[2]
    assert "found: 4.40.0" in said.out


@pytest.mark.parametrize("harm", ["changed", "missing", "record"])
def test_doctor_sees_a_damaged_backbone(harm, cli, tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    shutil.copytree(doctor.demo_backbone(), folder)
    weights = folder / "model.safetensors"
    if harm == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif harm == "missing":
        weights.unlink()
    else:
        (folder / "provenance.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr(doctor, "demo_backbone", lambda: folder)
    said = cli("doctor", "--json")
    assert said.code == 5
    found = json.loads(said.out)
    assert found["problems"] == [found["demo_backbone"]]
    assert "Install the package again." in found["demo_backbone"]


def test_a_gpu_is_described(monkeypatch):
    class Properties:
        name, major, minor = "GPU", 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: Properties)
    monkeypatch.setattr(torch.cuda, "device", lambda _index: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3, 4))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert doctor._gpu(0) == {
        "name": "GPU", "compute_capability": "9.0", "bf16": True, "memory_bytes": 4, "free_memory_bytes": 3,
    }  # fmt: skip


# --- all commands -----------------------------------------------------------------------------------------------


def commands(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_everything_that_prints_results_prints_json():
    silent = {
        name
        for name, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert silent == {"generate"}  # its results are JSON lines always


def test_the_resolved_configuration_as_json(cli, tmp_path):
    said = cli("run", "--print-config", "--json", "--set", "seed=7")
    assert build_config(json.loads(said.out)) == build_config({"seed": 7})


def test_the_help_names_every_exit_code(cli):
    shown = " ".join(cli("--help").out.split())
    assert exit_codes()[8] == "MissingExtraError"
    for code, name in exit_codes().items():
        assert f"{code} {name}" in shown


def program(words: list[str], **environment: str) -> str:
    """What `grasp-lora` writes in a process of its own, which takes its name from the command line."""
    start = f"import sys; sys.argv = {['grasp-lora', *words]!r}; from grasp_lora.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("grasp-lora se", ["search"]),
        ("grasp-lora run --resu", ["--resume"]),
        ("grasp-lora run --set controller.p_m", ["controller.p_min=", "controller.p_max="]),
        ("grasp-lora run --report-to tens", ["tensorboard"]),
    ],
)
def test_the_shell_completes(line, offered):
    word = str(len(line.split()) - 1)
    found = program([], _GRASP_LORA_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=word)
    assert found.split() == offered


def test_completion_is_installed_for_a_shell(tmp_path):
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    assert "installed" in program(["--install-completion", "bash"], **named)
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_GRASP_LORA_COMPLETE=complete_bash" in script.read_text(encoding="utf-8")


def test_paths_of_this_machine_stay_out_of_the_template(cli, tmp_path):
    assert cli("init", "--out", tmp_path / "my.yaml").code == 0
    assert str(Path(tmp_path)) not in (tmp_path / "my.yaml").read_text(encoding="utf-8")
