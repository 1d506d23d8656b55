import errno
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.errors import RunError
from grasp_lora.runs import EventLog, read_events, without_times


def write_rounds(path, numbers, keep=None):
    with EventLog(path, keep) as log:
        for number in numbers:
            log.write("round", {"number": number, "loss": 0.1 * number}, {"seconds": 0.5})


def test_events_come_back_in_order_with_sequence_kind_and_time(tmp_path):
    path = tmp_path / "deep" / "events.jsonl"
    with EventLog(path) as log:
        assert log.write("start", {"text": "line\nbreak ملخص"}) == 0
        assert log.write("stop", times={"seconds": 2.0}) == 1
        assert log.next_seq == 2
    first, second = read_events(path)
    assert without_times([first]) == [{"seq": 0, "kind": "start", "text": "line\nbreak ملخص"}]
    assert second["time"]["seconds"] == 2.0
    assert second["time"]["unix"] >= first["time"]["unix"] > 1.7e9
    assert [event["seq"] for event in read_events(path, "stop")] == [1]


def test_an_event_is_readable_at_once(tmp_path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write("a")
        assert [event["kind"] for event in read_events(tmp_path / "e.jsonl")] == ["a"]


def test_a_loss_that_is_not_a_number_can_be_logged(tmp_path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write("loss", {"value": math.nan})
    assert math.isnan(float(read_events(tmp_path / "e.jsonl")[0]["value"]))


def test_reopening_continues_the_sequence(tmp_path):
    write_rounds(tmp_path / "h.jsonl", [0, 1])
    write_rounds(tmp_path / "h.jsonl", [2])
    assert [(e["seq"], e["number"]) for e in read_events(tmp_path / "h.jsonl")] == [(0, 0), (1, 1), (2, 2)]


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 400), kept=st.integers(0, 3))
def test_a_kill_anywhere_behind_the_checkpoint_changes_nothing(tmp_path_factory, cut, kept):
    folder = tmp_path_factory.mktemp("log")
    write_rounds(folder / "whole.jsonl", range(6))
    write_rounds(folder / "torn.jsonl", range(kept))
    size = (folder / "torn.jsonl").stat().st_size
    write_rounds(folder / "torn.jsonl", range(kept, 6))
    data = (folder / "torn.jsonl").read_bytes()
    (folder / "torn.jsonl").write_bytes(data[: max(size, len(data) - cut)])
    write_rounds(folder / "torn.jsonl", range(kept, 6), keep=kept)
    assert without_times(read_events(folder / "torn.jsonl")) == without_times(read_events(folder / "whole.jsonl"))


def test_a_torn_last_line_is_left_out_by_readers_and_removed_by_the_next_writer(tmp_path):
    path = tmp_path / "h.jsonl"
    write_rounds(path, [0, 1])
    path.write_bytes(path.read_bytes() + b'{"seq": 2, "kind": "ro')
    assert len(read_events(path)) == 2
    write_rounds(path, [2])
    assert [event["seq"] for event in read_events(path)] == [0, 1, 2]


def test_a_log_shorter_than_its_checkpoint_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "h.jsonl"
    write_rounds(path, [0, 1])
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"holds 2 events, but the checkpoint was made after 3"):
        EventLog(path, keep=3)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"not json", b"[1]", b'{"kind": "x"}', b'{"seq": 7, "kind": "x"}', b'{"seq": 1}', b"\xff"]
)
def test_a_damaged_line_is_named_and_nothing_is_cut_off(tmp_path, line):
    path = tmp_path / "h.jsonl"
    write_rounds(path, [0])
    path.write_bytes(path.read_bytes() + line + b"\n")
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"h\.jsonl, line 2"):
        read_events(path)
    with pytest.raises(RunError, match=r"h\.jsonl, line 2"):
        EventLog(path)
    assert path.read_bytes() == before


def test_a_missing_log_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        read_events(tmp_path / "no.jsonl")


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "h.jsonl"
    log = EventLog(path)
    log.write("a")
    before = path.read_bytes()
    import os

    real, calls = os.write, []

    def half_then_full(descriptor, data):
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", half_then_full)
    with pytest.raises(RunError, match="no space left"):
        log.write("b")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert log.write("c") == 1
    assert [event["kind"] for event in read_events(path)] == ["a", "c"]
    log.close()


@pytest.mark.parametrize("name", ["seq", "kind", "time"])
def test_reserved_fields_are_refused(tmp_path, name):
    with EventLog(tmp_path / "h.jsonl") as log, pytest.raises(ValueError, match="reserved"):
        log.write("a", {name: 1})


def test_a_closed_log_takes_nothing(tmp_path):
    log = EventLog(tmp_path / "h.jsonl")
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write("a")


def test_each_line_is_one_json_object(tmp_path):
    write_rounds(tmp_path / "h.jsonl", range(3))
    lines = (tmp_path / "h.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]
