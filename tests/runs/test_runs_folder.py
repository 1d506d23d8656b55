import errno
import os
import shutil
import subprocess
import sys

import pytest

from grasp_lora.config import Config, build_config, to_yaml
from grasp_lora.errors import RunError
from grasp_lora.runs import RunFolder, config_differences
from grasp_lora.runs.lock import FolderLock

CONFIG = to_yaml(build_config({"seed": 7, "run": {"dir": "runs/a"}}))


@pytest.fixture
def finished(tmp_path):
    """A run with one finished stage and results, not in use."""
    with RunFolder.create(tmp_path / "run", CONFIG) as run:
        run.stage("search").finish({"p_star": 0.1 + 0.2})
        run.write_manifest({"seeds": {"run": 7}})
        run.write_results({"f1": 0.5})
        with run.event_log() as log:
            log.write("start")
    return tmp_path / "run"


def tree(path):
    """Content by name of what a user can lose; the lock says only who has the folder."""
    names = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(name): (path / name).read_bytes() for name in names}


def test_a_run_is_read_back_as_it_was_written(finished):
    run = RunFolder.open(finished)
    assert run.config_yaml() == CONFIG
    assert run.stages_done() == {"search": {"p_star": 0.1 + 0.2}}
    assert run.manifest() == {"seeds": {"run": 7}}
    assert run.results() == {"f1": 0.5}


def test_an_empty_folder_may_become_a_run(tmp_path):
    RunFolder.create(tmp_path, CONFIG).close()
    assert RunFolder.open(tmp_path).stages_done() == {}


def test_a_start_that_was_killed_early_does_not_block_the_next(tmp_path):
    FolderLock(tmp_path).release()
    (tmp_path / "..grasp-run.123-0.tmp").write_text("{", encoding="utf-8")
    RunFolder.create(tmp_path, CONFIG).close()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_start_killed_before_its_configuration_says_so(finished):
    (finished / "config.yaml").unlink()
    with pytest.raises(RunError, match="never started fully"):
        RunFolder.resume(finished, CONFIG)


def test_an_existing_run_is_kept_unless_overwrite_is_asked(finished):
    before = tree(finished)
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite.*run\.dir"):
        RunFolder.create(finished, CONFIG)
    assert tree(finished) == before
    with RunFolder.create(finished, CONFIG, overwrite=True) as run:
        assert run.stages_done() == {}
    assert sorted(p.name for p in finished.iterdir()) == [".grasp-run", ".lock", "config.yaml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_folder_is_never_touched(tmp_path, overwrite):
    (tmp_path / "config.yaml").write_text("seed: 1", encoding="utf-8")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "thesis.txt").write_text("years of work", encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(RunError, match="not a run folder, so nothing in it is touched"):
        RunFolder.create(tmp_path, CONFIG, overwrite=overwrite)
    assert tree(tmp_path) == before
    assert not (tmp_path / ".lock").exists()


def test_a_users_file_inside_a_run_stops_the_overwriting(finished):
    (finished / "notes.txt").write_text("mine", encoding="utf-8")
    before = tree(finished)
    with pytest.raises(RunError, match=r"not the run's: notes\.txt.*nothing was removed"):
        RunFolder.create(finished, CONFIG, overwrite=True)
    assert tree(finished) == before


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_overwriting_does_not_follow_links_out_of_the_folder(finished, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("keep", encoding="utf-8")
    shutil.rmtree(finished / "stages")
    (finished / "stages").symlink_to(outside)
    RunFolder.create(finished, CONFIG, overwrite=True).close()
    assert (outside / "keep.txt").read_text(encoding="utf-8") == "keep"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("x", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is a file, not a folder"):
            RunFolder.create(tmp_path / "run", CONFIG, overwrite=overwrite)


@pytest.mark.parametrize("number", range(3))
def test_overwriting_that_fails_half_way_can_be_repeated(finished, monkeypatch, number):
    (finished / "export").mkdir()
    real, calls = shutil.rmtree, []

    def fail(path, *args, **kwargs):
        calls.append(path)
        if len(calls) > number:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **kwargs)

    monkeypatch.setattr("shutil.rmtree", fail)
    if number < 2:
        with pytest.raises(RunError, match="cannot be written"):
            RunFolder.create(finished, CONFIG, overwrite=True)
    monkeypatch.undo()
    RunFolder.create(finished, CONFIG, overwrite=True).close()
    assert RunFolder.open(finished).stages_done() == {}


def test_resume_goes_on_with_what_is_done(finished):
    with RunFolder.resume(finished, CONFIG) as run:
        assert run.stage("search").done() == {"p_star": 0.1 + 0.2}
        assert run.stage("finalize").done() is None
        run.stage("finalize").finish({"steps": 5})
        with run.event_log() as log:
            assert log.write("resumed") == 1
    assert list(RunFolder.open(finished).stages_done()) == ["finalize", "search"]


def test_resume_with_other_settings_lists_them_all(finished):
    other = to_yaml(build_config({"seed": 8, "search": {"lr": 1e-3}, "run": {"dir": "runs/b"}}))
    before = tree(finished)
    with pytest.raises(RunError) as caught:
        RunFolder.resume(finished, other)
    assert "seed: 7 in the run, 8 now" in str(caught.value)
    assert "search.lr: 0.0001 in the run, 0.001 now" in str(caught.value)
    assert "run.dir" not in str(caught.value).replace("another run.dir", "")
    assert tree(finished) == before
    RunFolder.resume(finished, CONFIG).close()  # the refusal left no lock behind


def test_resume_ignores_only_what_it_is_told_to(finished):
    other = to_yaml(build_config({"seed": 7, "run": {"dir": "runs/b"}}))
    RunFolder.resume(finished, other).close()
    with pytest.raises(RunError, match=r'run\.dir: "runs/a" in the run, "runs/b" now'):
        RunFolder.resume(finished, other, ignore=())


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("a: {b: 1, c: [1, 2]}", "a: {c: [1, 2], b: 1.0}", []),
        ("a: 1", "a: true", ["a: 1 in the run, true now"]),
        ("a: {b: 1}", "a: {}", ["a.b: 1 in the run, (not set) now", "a: (not set) in the run, {} now"]),
        ("a: null", "b: null", ["a: null in the run, (not set) now", "b: (not set) in the run, null now"]),
        ("run: {dir: a}\nrunner: 1", "run: {dir: b}\nrunner: 2", ["runner: 1 in the run, 2 now"]),
    ],
)
def test_config_differences(old, new, lines):
    assert config_differences(old, new, ignore=("run",)) == lines


def test_a_setting_of_a_later_version_may_only_stand_at_its_default():
    defaults = {"a.new": "auto", "a.b": 1}
    assert config_differences("a: {b: 2}", "a: {b: 2, new: auto}", defaults=defaults) == []
    found = config_differences("a: {b: 2}", "a: {b: 2, new: all}", defaults=defaults)
    assert found == ['a.new: (not set) in the run, "all" now']
    # A setting that both name is held against what the run had, not against the default.
    assert config_differences("a: {b: 2}", "a: {b: 1}", defaults=defaults) == ["a.b: 2 in the run, 1 now"]


def test_a_run_of_an_earlier_version_is_gone_on_with(tmp_path):
    whole = to_yaml(Config())
    earlier = "\n".join(line for line in whole.splitlines() if "checkpoint_every" not in line and "scope:" not in line)
    RunFolder.create(tmp_path / "run", earlier).close()
    RunFolder.resume(tmp_path / "run", whole).close()
    with pytest.raises(RunError, match="prune.scope"):
        RunFolder.resume(tmp_path / "run", whole.replace("scope: per_tensor", "scope: global"))


@pytest.mark.parametrize("make", [lambda _path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_run_cannot_be_opened_or_resumed(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(RunError, match=r"does not exist|not a run folder"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(RunError, match=r"does not exist|not a run folder"):
        RunFolder.resume(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("content", ['{"format": 99}', "[]"])
def test_a_run_of_another_format_is_refused(finished, content):
    (finished / ".grasp-run").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match="this version reads 1"):
        RunFolder.open(finished)


def test_a_stage_is_done_only_by_its_result(finished):
    with RunFolder.resume(finished, CONFIG) as run:
        stage = run.stage("final.seed-1")
        assert stage.name == "final.seed-1"
        (stage.path / "weights.bin").write_bytes(b"1")
        (stage.path / "checkpoints").mkdir()
        assert stage.done() is None
        assert stage.finish({"ratios": (0.1, 0.2)}) == {"ratios": [0.1, 0.2]} == stage.done()
        stage.reset()
        assert stage.done() is None
        assert list(stage.path.iterdir()) == []


def test_a_damaged_result_is_an_error_not_an_unfinished_stage(finished):
    (finished / "stages" / "search" / "result.json").write_text('{"p_st', encoding="utf-8")
    with pytest.raises(RunError, match=r"result\.json, line 1: not valid JSON"):
        RunFolder.open(finished).stages_done()
    (finished / "stages" / "search" / "result.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match="a result is a JSON object"):
        RunFolder.open(finished).stages_done()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".hidden"])
def test_a_stage_name_cannot_leave_the_folder(finished, name):
    with pytest.raises(ValueError, match="stage name"):
        RunFolder.open(finished).stage(name)


def test_reading_makes_nothing(finished):
    before = sorted(finished.rglob("*"))
    assert RunFolder.open(finished).stage("never").done() is None
    assert sorted(finished.rglob("*")) == before


def test_two_writers_in_one_folder_are_refused_and_readers_are_not(finished):
    with RunFolder.resume(finished, CONFIG) as run:
        before = tree(finished)
        for attempt in (
            lambda: RunFolder.resume(finished, CONFIG),
            lambda: RunFolder.create(finished, CONFIG, overwrite=True),
        ):
            with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .*give another run\.dir"):
                attempt()
        assert tree(finished) == before
        assert RunFolder.open(finished).stages_done() == run.stages_done()
    RunFolder.resume(finished, CONFIG).close()


HOLDER = """
import sys
from grasp_lora.runs.lock import FolderLock
lock = FolderLock(sys.argv[1])
sys.stdout.write("locked\\n"); sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_the_lock_of_another_process_ends_with_it_even_when_killed(finished):
    command = [sys.executable, "-c", HOLDER, str(finished)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"process {holder.pid}"):
            RunFolder.resume(finished, CONFIG)
        holder.kill()
        holder.wait()
    RunFolder.resume(finished, CONFIG).close()


def test_a_forgotten_lock_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    assert lock.held
    del lock
    second = FolderLock(tmp_path)
    second.release()
    second.release()
    assert not second.held


@pytest.mark.skipif(os.name != "posix", reason="needs flock to be absent for the test")
@pytest.mark.parametrize(
    ("owner", "refused"), [("dead", False), ("alive", True), ("elsewhere", True), ("garbage", False)]
)
def test_without_system_locks_the_process_id_decides(tmp_path, monkeypatch, owner, refused):
    def no_locks(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    machine = FolderLock.__init__.__globals__["_machine"]()
    content = {
        "dead": f'{{"pid": {done.pid}, "machine": "{machine}"}}',
        "alive": f'{{"pid": {os.getppid()}, "machine": "{machine}"}}',
        "elsewhere": f'{{"pid": {done.pid}, "machine": "{machine}-other"}}',
        "garbage": "{",
    }[owner]
    (tmp_path / ".lock").write_text(content, encoding="utf-8")
    if refused:
        with pytest.raises(RunError, match=r"in use.*remove .*\.lock"):
            FolderLock(tmp_path)
        assert (tmp_path / ".lock").read_text(encoding="utf-8") == content
    else:
        lock = FolderLock(tmp_path)
        with pytest.raises(RunError, match="in use"):
            FolderLock(tmp_path)
        lock.release()
        FolderLock(tmp_path).release()
