import io

import pytest
from rich.console import Console

from grasp_lora.runs import PlainProgress, QuietProgress, RichProgress, make_progress
from grasp_lora.runs.progress import format_duration, format_values


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def plain():
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, clock), stream, clock


def test_plain_lines_come_at_most_every_ten_seconds(plain):
    progress, stream, clock = plain
    with progress.stage("search", 100) as task:
        for step in range(100):
            clock.now += 1.0
            task.advance(loss=2.5 - step / 100, ratio=0.4, sigma=1e-5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search (0/100) ..."
    assert lines[1] == "search  10/100  loss 2.4100  ratio 0.4000  sigma 1.000e-05  1:30 min left"
    assert lines[-1] == "search  100/100  loss 1.5100  ratio 0.4000  sigma 1.000e-05  done after 1:40 min"
    assert len(lines) == 12


def test_plain_stages_nest_and_say_when_they_stop(plain):
    progress, stream, clock = plain

    def fail():
        with progress.stage("final"), progress.stage("dev", 2) as inner:
            inner.advance(2)
            clock.now += 3.4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    progress.note("see [run]")
    progress.warn("careful")
    assert stream.getvalue().splitlines() == [
        "final ...",
        "dev (0/2) ...",
        "dev  2/2  stopped after 3 s",
        "final  0  stopped after 3 s",
        "see [run]",
        "warning: careful",
    ]


def test_no_remaining_time_where_none_is_known(plain):
    progress, stream, clock = plain
    with progress.stage("a") as task:
        clock.now += 11
        task.advance(5)
    assert stream.getvalue().splitlines()[1] == "a  5"


def test_quiet_shows_nothing(capsys):
    progress = make_progress(quiet=True)
    assert isinstance(progress, QuietProgress)
    with progress.stage("a", 3) as task:
        task.advance(loss=1.0)
    progress.note("b")
    progress.warn("c")
    assert capsys.readouterr() == ("", "")


def test_the_kind_follows_the_stream(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(stream=io.StringIO()), PlainProgress)
    assert isinstance(make_progress(stream=Terminal()), RichProgress)


def test_everything_goes_to_standard_error(capsys):
    with make_progress().stage("a", 1) as task:
        task.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("a (0/1) ...\n")


def rich_progress():
    stream = Terminal()
    return RichProgress(Console(file=stream, force_terminal=True, width=120, color_system=None)), stream


def test_bars_show_values_and_leave_one_line_per_stage():
    progress, stream = rich_progress()
    with progress.stage("search [qa]", 4) as task:
        task.advance(2, loss=1.25, ratio=0.4)
        task.advance(1, loss=1.0)
        with progress.stage("dev"):
            progress.note("inside [bold]")
        progress.warn("careful")
    text = stream.getvalue()
    assert "search [qa]  loss 1.0000  ratio 0.4000  done after " in text
    assert "dev  done after " in text
    assert "inside [bold]" in text
    assert "warning: careful" in text
    assert "3/4" in text


def round_row(number, committed=True):
    return {
        "round": number, "samples": [0.31, 0.62], "rewards": [-0.01, 0.0234], "committed": committed, "density": 0.4567,
        "after": {"mean": 0.511, "std": 0.123, "p": 0.543},
    }  # fmt: skip


def test_the_view_holds_the_last_rounds_and_what_a_step_is_made_with():
    progress, stream = rich_progress()
    with progress.stage("search", 100) as task:
        for number in range(7):
            task.event("round", round_row(number, committed=number != 6))
        task.event("step", {"step": 1, "epoch": 3, "loss": 2.0, "lr": 1e-4})
        task.event("epoch", {"epoch": 2, "train_loss": 2.0, "dev_loss": 1.75})
        task.advance(1, loss=2.0, ratio=0.5)
        progress.note("look")
    view = stream.getvalue().partition("done after")[0]
    assert "loss 2.0000  ratio 0.5000  epoch 3  lr 1.000e-04  dev loss 1.7500" in view
    rows = [line.split() for line in view.splitlines() if line.split()[1:2] == ["0.511"]]
    assert rows[:4] == [[str(n), "0.511", "0.123", "0.620", "+0.0234", "0.543", "0.457", "moved"] for n in range(2, 6)]
    assert rows[4] == ["6", "0.511", "0.123", "0.620", "+0.0234", "0.543", "0.457", "kept"]
    assert {row[0] for row in rows} == {"2", "3", "4", "5", "6"}
    assert "search  loss 2.0000  ratio 0.5000  done after 0 s" in stream.getvalue()


def test_results_are_lines(plain):
    progress, stream, _ = plain
    progress.result("search", p_star=0.61)
    live, terminal = rich_progress()
    live.result("search", p_star=0.61)
    assert stream.getvalue() == terminal.getvalue() == "search: p_star 0.6100\n"


def test_bars_end_when_a_stage_fails_and_can_start_again():
    progress, stream = rich_progress()

    def fail():
        with progress.stage("a", 1):
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert "a  stopped after " in stream.getvalue()
    with progress.stage("b", 1) as task:
        task.advance()
    assert "b  done after " in stream.getvalue()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 2  # cursor hidden, shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (125, "2:05 min"),
        (3599.7, "1:00:00 h"),
        (3725, "1:02:05 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_values():
    values = {"loss": 0.0, "lr": 1e-4, "n": 3, "who": "x", "nan": float("nan"), "big": 2.5e7, "minus": -0.25}
    assert format_values(values) == "loss 0.0000  lr 1.000e-04  n 3  who x  nan nan  big 2.500e+07  minus -0.2500"
