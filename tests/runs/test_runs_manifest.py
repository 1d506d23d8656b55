import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.config import build_config
from grasp_lora.errors import RunError
from grasp_lora.runs import build_manifest, changed_inputs, hash_file, hash_folder, hash_path, portable
from grasp_lora.runs import manifest as manifest_module

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180


def test_hash_of_a_file_is_plain_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == ABC == hash_path(tmp_path / "a")
    assert hash_path(tmp_path / "none") is None
    with pytest.raises(RunError, match="cannot be read to hash it"):
        hash_file(tmp_path / "none")


def make_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


FILES = {"a.py": b"1", "sub/b.py": b"2", "c.txt": b"3"}


@pytest.mark.parametrize(
    "change",
    [
        {"a.py": b"9"},
        {"sub/b.py": b"2\n"},
        {"d.py": b""},
    ],
)
def test_hash_of_a_folder_tells_contents_and_names_apart(tmp_path, change):
    assert hash_folder(make_folder(tmp_path / "x", FILES)) != hash_folder(make_folder(tmp_path / "y", FILES | change))


def test_hash_of_a_folder_does_not_know_where_it_is_nor_the_order(tmp_path):
    one = make_folder(tmp_path / "one", FILES)
    two = make_folder(tmp_path / "deep" / "two", dict(reversed(FILES.items())))
    make_folder(two, {".git/HEAD": b"x", "__pycache__/a.pyc": b"y", ".DS_Store": b"z"})
    assert hash_folder(one) == hash_folder(two) == hash_path(one)
    assert hash_folder(one, [".py"]) == hash_folder(make_folder(tmp_path / "p", {"a.py": b"1", "sub/b.py": b"2"}))
    shutil.move(one / "a.py", one / "z.py")
    assert hash_folder(one) != hash_folder(two)
    with pytest.raises(RunError, match="not a folder"):
        hash_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/train.jsonl", "train.jsonl"),
        ("/home/me/my data/train.jsonl", "train.jsonl"),
        ("~/adapters/en", "en"),
        ("~me/adapters/en", "en"),
        ("file:///home/me/x", "x"),
        (r"C:\Users\me\x.jsonl", "x.jsonl"),
        ("--config=/home/me/run.yaml", "--config=run.yaml"),
        ("data.target.train=/home/me/my data/t.jsonl", "data.target.train=t.jsonl"),
        ("adapters.others=[/home/me/a, '/home/me/b']", "adapters.others=[a, 'b']"),
        ("hf:/home/me/set:train", "hf:set:train"),
        ("../shared/data/x.jsonl", "../shared/data/x.jsonl"),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("hf:mlqa/ar:train", "hf:mlqa/ar:train"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("Answer yes/no: {question} /think", "Answer yes/no: {question} /think"),
        (r"model\.layers\.\d+\.(q|v)_proj", r"model\.layers\.\d+\.(q|v)_proj"),
        ("/", "/"),
        ("1/2", "1/2"),
        ("", ""),
    ],
)
def test_absolute_paths_become_names_and_other_texts_stay(text, shown):
    assert portable(text) == shown
    assert portable({"k": [text, 1, None, (text,)]}) == {"k": [shown, 1, None, [shown]]}


@settings(deadline=None)
@given(
    st.lists(st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True), min_size=2, max_size=5),
    st.sampled_from(["", "--x=", "a.b=", "["]),
)
def test_no_folder_of_an_absolute_path_survives(parts, front):
    assert portable(front + "/" + "/".join(parts)) == front + parts[-1]


def test_manifest_says_where_a_result_comes_from(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"abc")
    model = make_folder(tmp_path / "model", FILES)
    config = build_config(
        {
            "seed": 3,
            "data": {"target": {"train": str(tmp_path / "train.jsonl")}},
            "model": {"name_or_path": str(model)},
        }
    )
    found = build_manifest(
        config,
        {
            "model": model,
            "data.target.train": tmp_path / "train.jsonl",
            "adapters.source": "me/adapter",
            "none": None,
        },
        ["/usr/bin/grasp-lora", "run", "--set", f"model.name_or_path={model}"],
        {"controller": 5},
    )
    assert json.loads(json.dumps(found)) == found
    assert found["inputs"] == {
        "model": {"name": "model", "sha256": hash_folder(model)},
        "data.target.train": {"name": "train.jsonl", "sha256": ABC},
        "adapters.source": {"name": "me/adapter", "sha256": None},
    }
    assert found["seeds"] == {"run": 3, "controller": 5}
    assert found["command"] == ["grasp-lora", "run", "--set", "model.name_or_path=model"]
    assert found["config"]["data"]["target"]["train"] == "train.jsonl"
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["grasp-lora"]
    assert found["hardware"]["cores"] == os.cpu_count()
    assert found["hardware"]["cpu"]
    assert found["started"].endswith("+00:00")
    text = json.dumps(found)
    for private in (str(tmp_path), str(Path.home()), str(Path(manifest_module.__file__).parent)):
        assert private not in text


def test_gpus_are_described_where_there_are_some(monkeypatch):
    class Properties:
        name, total_memory = "NVIDIA H200", 150_000_000_000

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _index: Properties)
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    monkeypatch.setattr(manifest_module, "_read_system_file", lambda path: line if "nvidia" in path else "")
    found = manifest_module.hardware("cuda")
    assert found["gpus"] == [{"name": "NVIDIA H200", "memory_bytes": 150_000_000_000}]
    assert found["driver"] == "550.54.15"
    assert found["device"] == "cuda"


def test_changed_inputs_are_named(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    old = {
        "inputs": {
            "data": manifest_module.describe_input(tmp_path / "a"),
            "model": {"name": "m", "sha256": None},
        }
    }
    assert changed_inputs(old, json.loads(json.dumps(old))) == []
    (tmp_path / "a").write_bytes(b"abd")
    new = {
        "inputs": {
            "data": manifest_module.describe_input(tmp_path / "a"),
            "model": {"name": "m", "sha256": None},
        }
    }
    (line,) = changed_inputs(old, new)
    assert line.startswith(f"data: content {ABC[:12]} in the run, ")
    assert changed_inputs(old, {"inputs": {}}) == [f"data: content {ABC[:12]} in the run, (none) now"]


def git(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, env=environment)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_package_and_of_nobody_else(tmp_path, monkeypatch):
    package = make_folder(tmp_path / "src" / "pkg", {"__init__.py": b"", "a.py": b"1"})
    monkeypatch.setattr(manifest_module, "_PACKAGE_FOLDER", package)
    git(tmp_path, "init", "-q")
    make_folder(tmp_path, {"other.txt": b"x"})
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "other")
    assert manifest_module.code_identity()["commit"] is None  # installed inside a stranger's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "package")
    clean = manifest_module.code_identity()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (package / "a.py").write_bytes(b"2")
    changed = manifest_module.code_identity()
    assert changed["dirty"] is True
    assert changed["source_sha256"] != clean["source_sha256"]


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = manifest_module.code_identity()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert len(found["source_sha256"]) == 64
