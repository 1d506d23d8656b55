import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.errors import RunError
from grasp_lora.runs import clear_checkpoints, load_checkpoint, save_checkpoint

STATE = {"epoch": 1, "best": math.inf, "loss": 0.1 + 0.2, "names": ["a", "ب"], "none": None}


def tensors(value=1.0):
    weight = torch.arange(6, dtype=torch.float64).reshape(2, 3) * value
    return {
        "weight": weight,
        "view": weight.t(),
        "half": torch.tensor([value, -0.0], dtype=torch.bfloat16),
        "step": torch.tensor(3.0),
        "mask": torch.tensor([True, False]),
        "generator": torch.Generator().manual_seed(1).get_state(),
        "empty": torch.empty(0, 4),
        "odd": torch.tensor([math.nan, math.inf, 5e-324], dtype=torch.float64),
    }


def same_bits(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.numpy(force=True).tobytes() == right.numpy(force=True).tobytes()
    )


def test_everything_comes_back_to_the_bit(tmp_path):
    saved = tensors()
    save_checkpoint(tmp_path, 50, saved, STATE)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.state, loaded.notices) == (50, STATE, ())
    assert loaded.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        left, right = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in (tensor, loaded.tensors[name]))
        assert same_bits(left.contiguous(), right), name


@settings(deadline=None, max_examples=40)
@given(st.floats())
def test_any_float_in_the_state_comes_back_to_the_bit(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("c")
    save_checkpoint(folder, 0, {}, {"x": value})
    found = load_checkpoint(folder).state["x"]
    assert (math.isnan(found) and math.isnan(value)) or found.hex() == value.hex()


def test_what_is_saved_is_a_copy(tmp_path):
    weight = torch.zeros(2, requires_grad=True)
    save_checkpoint(tmp_path, 1, {"w": weight}, {})
    with torch.no_grad():
        weight += 1
    assert load_checkpoint(tmp_path).tensors["w"].tolist() == [0.0, 0.0]


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "nothing") is None
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_latest_are_kept(tmp_path, keep):
    for step in range(5):
        save_checkpoint(tmp_path, step, {}, {"step": step}, keep=keep)
    assert len(list(tmp_path.iterdir())) == keep
    assert load_checkpoint(tmp_path).step == 4


def test_keep_must_leave_one(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        save_checkpoint(tmp_path, 1, {}, {}, keep=0)


def test_the_latest_saved_counts_not_the_largest_step(tmp_path):
    save_checkpoint(tmp_path, 100, {}, {"n": 0})
    save_checkpoint(tmp_path, 100, {}, {"n": 1})
    assert load_checkpoint(tmp_path).state == {"n": 1}
    save_checkpoint(tmp_path, 60, {}, {"n": 2})
    assert (load_checkpoint(tmp_path).step, load_checkpoint(tmp_path).state) == (60, {"n": 2})


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_notice(tmp_path, file, damage):
    save_checkpoint(tmp_path, 1, tensors(1.0), STATE, keep=2)
    path = save_checkpoint(tmp_path, 2, tensors(2.0), STATE | {"loss": 0.5}, keep=2) / file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            data[:-7]
            if damage == "truncate"
            else data.replace(b"0.5", b"0.6")
            if file == "state.json"
            else data[:-1] + b"\1"
        )
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert len(loaded.notices) == 1
    assert "step2" in loaded.notices[0]
    save_checkpoint(tmp_path, 2, {}, {"again": True})
    assert load_checkpoint(tmp_path).state == {"again": True}


def test_when_all_are_damaged_it_is_an_error_that_says_what_to_do(tmp_path):
    path = save_checkpoint(tmp_path, 2, tensors(), STATE)
    (path / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint .* can be used.*SHA-256.*run the stage again"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 2, {}, {}) / "state.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 1', '"format": 9'), encoding="utf-8")
    with pytest.raises(RunError, match="format 9"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("number", range(1, 20))
def test_a_failure_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, number):
    """Fail at the n-th call that touches the disk: what is read afterwards is the old state or the new."""
    save_checkpoint(tmp_path, 1, tensors(1.0), {"n": 1})
    calls = []
    for name in ("os.fsync", "os.open", "pathlib.Path.rename", "pathlib.Path.mkdir", "shutil.rmtree"):
        fail_at(monkeypatch, name, calls, number)
    try:
        save_checkpoint(tmp_path, 2, tensors(2.0), {"n": 2})
        failed = False
    except RunError as error:
        assert "no space left" in str(error)  # noqa: PT017 - late calls do not fail
        failed = True
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path)
    assert loaded.notices == ()
    assert loaded.state["n"] in ({1, 2} if failed else {2})
    assert same_bits(loaded.tensors["weight"], tensors(float(loaded.state["n"]))["weight"])
    assert failed == (len(calls) >= number)
    save_checkpoint(tmp_path, 3, {}, {"n": 3})
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["step3"]


def fail_at(monkeypatch, name, calls, number):
    owner, _, attribute = name.rpartition(".")
    target = {"os": os, "pathlib.Path": Path, "shutil": __import__("shutil")}[owner]
    real = getattr(target, attribute)

    def counted(*args, **kwargs):
        if not kwargs.get("ignore_errors"):
            calls.append(name)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(target, attribute, counted)


def test_a_kill_leaves_rubbish_that_the_next_save_removes(tmp_path):
    save_checkpoint(tmp_path, 1, {}, {"n": 1})
    rubbish = tmp_path / "tmp-123-000001"
    rubbish.mkdir()
    (rubbish / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "history.jsonl").write_text("mine", encoding="utf-8")
    assert load_checkpoint(tmp_path).state == {"n": 1}
    save_checkpoint(tmp_path, 2, {}, {"n": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001-step2", "history.jsonl"]
    clear_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("state", [{"a": {1: 2}}, {"a": object()}])
def test_a_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path, state):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", 1, {}, state)
    assert not (tmp_path / "c").exists()


def test_no_pickle_is_written(tmp_path):
    path = save_checkpoint(tmp_path, 1, tensors(), STATE)
    assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]
