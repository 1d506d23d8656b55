import errno
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.errors import RunError
from grasp_lora.runs import disk_errors, read_json, to_json, write_json_atomic, write_text_atomic
from grasp_lora.runs.atomic import require_writable

FINITE_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(), child, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(FINITE_JSON)
def test_json_gives_back_every_bit(value):
    again = json.loads(to_json(value))
    assert again == value
    assert to_json(again) == to_json(value)  # tells -0.0 from 0.0 and 1 from 1.0, which == does not


def test_numbers_that_are_not_finite_become_texts_that_float_reads():
    again = json.loads(to_json({"a": [math.inf, -math.inf, math.nan]}), parse_constant=pytest.fail)
    assert again == {"a": ["Infinity", "-Infinity", "NaN"]}
    assert float(again["a"][0]) == math.inf
    assert float(again["a"][1]) == -math.inf
    assert math.isnan(float(again["a"][2]))


@pytest.mark.parametrize("value", [{1: "a"}, {"a": [{2.5: 1}]}, {"a": {None: 1}}])
def test_keys_that_would_change_their_type_are_refused(value):
    with pytest.raises(TypeError, match="would turn it into a string"):
        to_json(value)


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json_atomic(path, {"x": 1})
    write_json_atomic(path, {"x": 0.1, "y": "ملخص"})
    assert read_json(path) == {"x": 0.1, "y": "ملخص"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_new_file_has_ordinary_permissions(tmp_path):
    write_text_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x", encoding="utf-8")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, function):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"old": True})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace" if function == "replace" else "os.fsync", full)
    with pytest.raises(RunError, match=r"no space left while writing .*a\.json.*untouched.*Free space.*--resume"):
        write_json_atomic(path, {"old": False})
    monkeypatch.undo()
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_during_the_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_every_disk_problem_is_a_run_error_about_the_path(number, words):
    with pytest.raises(RunError, match=rf"{words}.*kept all"), disk_errors("some/export", kept="kept all"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(RunError, match="some/export"), disk_errors("some/export"):
        raise OSError(number, os.strerror(number))


def test_a_file_in_the_place_of_a_folder_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b'{"a": 1,\n "b"', r"line 2: not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "not valid JSON"),
    ],
)
def test_unreadable_json_is_a_run_error(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=words):
        read_json(path)


def test_whether_a_file_could_be_written_is_known_without_writing_it(tmp_path):
    require_writable(tmp_path / "new" / "record.json")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "there.json").write_text("mine")
    require_writable(tmp_path / "there.json")
    assert (tmp_path / "there.json").read_text() == "mine"
    with pytest.raises(RunError, match=r"cannot be written \(.*there\.json is no folder\)\. Nothing was written"):
        require_writable(tmp_path / "there.json" / "record.json")
    with pytest.raises(RunError, match="cannot be written"):
        require_writable(tmp_path / ("x" * 300))
