"""Every mistake of a user: exit code, one message that says what and what to do, nothing loaded, nothing changed."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from world import lines, tree_bytes, with_peft, write_rows

from grasp_lora.runs import RunFolder
from grasp_lora.training import step


def edit(path, change):
    rows = lines(path)
    change(rows)
    write_rows(path, rows)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-12])


def drop(field):
    return lambda path: edit(path, lambda rows: rows[1].pop(field))


FILES = {
    "missing": (lambda path: path.unlink(), ("does not exist",)),
    "empty": (lambda path: path.write_bytes(b""), ("empty", "at least one example")),
    "truncated": (truncate, ("cut off", "Fetch it again")),
    "not UTF-8": (lambda path: path.write_bytes(path.read_bytes() + b'{"context": "\xe9"}\n'), ("line", "UTF-8", "iconv")),  # noqa: E501
    "UTF-16": (lambda path: path.write_text(path.read_text(), encoding="utf-16"), ("UTF-16", "iconv")),
    "no context": (drop("context"), ("line 2", "'context'", "missing", "data.fields")),
    "no question": (drop("question"), ("line 2", "'question'", "missing")),
    "no answer": (drop("answer"), ("line 2", "'answers' or 'answer'", "missing")),
    "a number": (lambda path: edit(path, lambda rows: rows[0].update(question=3)), ("line 1", "'question'", "int 3")),
}  # fmt: skip


@pytest.fixture
def refused(world, cli, no_weights):
    """Run with some changes over an older run: it must fail before weights are loaded and leave that run alone."""

    def call(code, *expected, sets=(), **changes):
        run = world.root / "run"
        if not run.exists():
            (run / "stages").mkdir(parents=True)
            (run / ".grasp-run").write_text(json.dumps({"format": 1}))
            (run / "config.yaml").write_text("{}")
            (run / "results.json").write_text("{}")
        before = tree_bytes(run)
        said = cli("run", "-c", world.file(**changes), "--overwrite", *(w for s in sets for w in ("--set", s)))
        assert said.code == code, said.err
        for words in expected:
            assert words in said.error, said.error
        assert said.out == ""
        assert tree_bytes(run) == before
        return said.error

    return call


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("name", ["train", "source-dev"])
def test_files(what, name, world, refused):
    path = world.data / f"{name}.jsonl"
    damage, expected = FILES[what]
    damage(path)
    refused(3, path.name, *expected)


@pytest.mark.parametrize("name", ["target.train", "target.micro_dev", "source.train"])
def test_splits_that_are_not_given(name, refused):
    side, split = name.split(".")
    refused(3, f"data.{name} is not set", f"--set data.{name}=FILE", **{f"data__{side}__{split}": None})


def test_micro_dev(world, refused):
    path = world.data / "micro_dev.jsonl"
    refused(3, "data.target.micro_dev", "3", "2", "data.micro_dev_size", data__micro_dev_size=2)
    edit(path, lambda rows: rows[0].update(context=lines(world.data / "train.jsonl")[4]["context"]))
    refused(3, "target.train and target.micro_dev share 1 document", "data.allow_leakage=true")
    path.write_bytes(b"\n")
    refused(3, "micro_dev.jsonl", "empty")


def test_settings(refused):
    refused(2, "p_min", "0.9", "0.2", sets=["controller.p_min=0.9", "controller.p_max=0.2"])
    refused(2, "controller.interval", "0", sets=["controller.interval=0"])
    refused(2, "controller.candidates", "0", sets=["controller.candidates=0"])
    refused(2, "controller.p_init", "did you mean 0.65", sets=["controller.p_init=65"])
    refused(2, "model.device", "cuda:9", sets=["model.device=cuda:9"])
    refused(2, "model.device", "'gpu'", "auto, cpu, cuda or cuda:N", sets=["model.device=gpu"])
    refused(2, "task.max_new_tokens", "96", sets=["task.max_new_tokens=96"])
    refused(2, "merge.weights", "(2), got 3", sets=["merge.weights=[1, 1, 1]"])
    refused(2, "controller.intervall", "interval", sets=["controller.intervall=3"])


def test_a_merged_model_of_a_4_bit_base_is_refused_at_the_start(monkeypatch, refused):
    monkeypatch.setattr("grasp_lora.pipeline.checks.check_device", lambda _config: "")
    refused(2, "export.merged_model", "few bits", export__merged_model=True, model__quantization="bnb-4bit")


def test_a_missing_extra_is_named(monkeypatch, refused):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for name in ("bnb-4bit", "torchao-8bit"):
        refused(8, name, "pip install", model__quantization=name)


def test_target_modules(refused):
    refused(2, "'q_porj' matches no module", "Did you mean 'q_proj'", "all-linear", lora__target_modules=["q_porj"])
    refused(2, "matches no module", "Linear modules found", lora__target_modules=".*atention.*")


def test_templates(refused):
    refused(2, "task.prompt", "'{question}' exactly once, found 0", task__prompt="{context}:")
    refused(2, "'{contxt}' is no placeholder", "Did you mean 'context'", task__prompt="{contxt} {question}")
    refused(2, "no built-in prompt for 'tlh'", "task.prompt", task__prompt=None, task__language="tlh")


def test_an_example_that_is_too_long_without_its_document(world, refused):
    edit(world.data / "test.jsonl", lambda rows: rows[1].update(question="x" * 200, id="the-long-one"))
    refused(3, "'the-long-one'", "task.max_length", "even without the document")


def test_a_prompt_that_leaves_no_room_for_the_answer(world, refused):
    edit(world.data / "test.jsonl", lambda rows: rows[1].update(question="x" * 80, answer="y", id="tight"))
    refused(3, "'tight'", "task.max_length", task__max_new_tokens=30)


def test_the_base_model(world, refused, tmp_path):
    refused(5, "nowhere", "config.json", model__name_or_path=tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    refused(5, "bare", "config.json", model__name_or_path=tmp_path / "bare")
    refused(2, "model.name_or_path", "no base model given", model__name_or_path=None)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{not json")
    refused(5, "broken", model__name_or_path=broken)
    without = tmp_path / "without-tokenizer"
    without.mkdir()
    (without / "config.json").write_bytes((world.model / "config.json").read_bytes())
    refused(5, "without-tokenizer", model__name_or_path=without)


def weights(change):
    def damage(folder):
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)

    return damage


def pickled(folder):
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


ADAPTERS = {
    "nan": (weights(lambda t: next(iter(t.values())).view(-1)[:2].fill_(float("nan"))), ("2 of", "NaN", "earlier")),
    "shape": (
        weights(lambda t: t.update({k: torch.ones(2, 99) for k in list(t)[:1]})),
        ("shape", "99", "adapter of this base"),
    ),
    "truncated": (
        lambda f: truncate(f / "adapter_model.safetensors"),
        ("adapter_model.safetensors", "truncated or damaged", "again"),
    ),
    "pickled": (pickled, ("pickled", "adapter_model.bin", "safetensors")),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), ("adapter_config.json",)),
}


@pytest.mark.parametrize("what", ADAPTERS)
@pytest.mark.parametrize("role", ["source", "others"])
def test_adapters(what, role, world, refused):
    folder = world.adapter("given")
    damage, expected = ADAPTERS[what]
    damage(folder)
    refused(4, "given", *expected, **{f"adapters__{role}": [str(folder)] if role == "others" else folder})


def test_an_adapter_of_another_base(world, refused):
    refused(4, "'someone/else'", "'pico-llama'", "allow", adapters__target=world.adapter("given", base="someone/else"))


# --- while it runs ----------------------------------------------------------------------------------------------


def test_too_long_documents_are_cut_and_counted(world, cli):
    edit(world.data / "train.jsonl", lambda rows: rows[1].update(context="x" * 300))
    said = cli("run", "-c", world.file(data__target__test=None))
    assert said.code == 0
    assert "warning: target.train: 1 of 6 documents were cut to 96 tokens (the longest has" in said.err


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(world, cli, monkeypatch):
    file = world.file(run__checkpoint_every=1)
    honest, calls = step.answer_losses, 0

    def later_nan(model, batch, **settings):
        nonlocal calls
        calls += 1
        return honest(model, batch, **settings) * (float("nan") if calls == 4 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(step, "answer_losses", later_nan)
        said = cli("run", "-c", file)
    assert said.code == 7
    assert "the loss became nan at step 2 of target_adapter" in said.error
    assert "learning rate" in said.error
    kept = [path.name for path in (world.root / "run" / "stages" / "target_adapter" / "checkpoints").iterdir()]
    assert kept == ["000000-step1"]
    assert cli("run", "-c", file, "--resume").code == 0


def test_a_huge_learning_rate_is_named(world, cli):
    said = cli("run", "-c", world.file(train_source__lr=1e30, train_source__epochs=4))
    assert said.code == 7
    assert "source_adapter" in said.error
    assert "step" in said.error
    assert "ower the learning rate" in said.error


def test_a_full_disk_names_the_file_and_the_rest_is_there(world, cli, monkeypatch):
    file = world.file()

    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("grasp_lora.runs.checkpoint.write_bytes_synced", full)
        said = cli("run", "-c", file)
    assert said.code == 6
    for words in ("no space left while writing", "checkpoint before it is untouched", "--resume"):
        assert words in said.error
    done = [path.parent.name for path in (world.root / "run" / "stages").glob("*/result.json")]
    assert done == ["source_adapter"]
    assert cli("run", "-c", file, "--resume").code == 0


@pytest.mark.parametrize("place", ["training", "loading", "probing", "evaluation", "deployment"])
def test_out_of_gpu_memory_says_what_to_lower(place, world, cli, monkeypatch):
    where, advice = {
        "training": ("grasp_lora.training.step.answer_losses", "Lower batch_size"),
        "loading": ("grasp_lora.pipeline.models.AutoModelForCausalLM.from_pretrained", "model.quantization"),
        "probing": ("grasp_lora.probing.evaluator.example_losses", "eval_batch_size"),
        "evaluation": ("grasp_lora.pipeline.evaluation.example_losses", "evaluate.batch_size"),
        "deployment": ("grasp_lora.pipeline.deployment._generate", "evaluate.batch_size"),
    }[place]

    def out(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    file = world.file(evaluate__deployment=True, evaluate__rivals=["zero_shot"], data__source__dev=None)
    with monkeypatch.context() as patch:
        patch.setattr(where, out)
        said = cli("run", "-c", file)
    assert said.code == (5 if place == "loading" else 7)
    assert advice in said.error
    assert cli("run", "-c", file, "--resume").code == 0


def test_a_second_ctrl_c_says_how_to_go_on(world, cli, monkeypatch):
    def pressed(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("grasp_lora.pipeline.evaluation.generate_answers", pressed)
    said = cli("run", "-c", world.file())
    assert (said.code, "--resume" in said.error) == (130, True)


@pytest.mark.parametrize("what", ["tokenizer", "weights"])
def test_a_disk_that_is_full_at_the_end_loses_nothing(what, world, cli, monkeypatch):
    file = world.file(evaluate__rivals=[], export__merged_model=True)
    failure = {
        "tokenizer": OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors raises is no OSError.
        "weights": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    }[what]

    def full(*_args, **_settings):
        raise failure

    place = {
        "tokenizer": "grasp_lora.pipeline.export.load_tokenizer",
        "weights": "transformers.PreTrainedModel.save_pretrained",
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        said = cli("run", "-c", file, "--quiet")
    assert said.code == 6
    assert "no space left" in said.error
    assert (world.root / "run" / "stages" / "evaluate_grasp" / "result.json").is_file()
    assert cli("run", "-c", file, "--resume").code == 0


@pytest.mark.parametrize("started", [False, True])
def test_a_folder_that_may_not_be_written(started, world, cli, monkeypatch):
    file, run = world.file(evaluate__rivals=[], data__target__test=None), world.root / "run"
    if started:
        assert cli("run", "-c", file, "-q").code == 0
    before = tree_bytes(run)
    opened, made = os.open, os.mkdir

    def refuse(path):
        if run in (Path(path), *Path(path).parents):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    def only_reading(path, flags, *rest, **settings):
        if flags & os.O_CREAT:
            refuse(path)
        return opened(path, flags, *rest, **settings)

    def no_folder(path, *rest, **settings):
        refuse(path)
        return made(path, *rest, **settings)

    monkeypatch.setattr(os, "open", only_reading)
    monkeypatch.setattr(os, "mkdir", no_folder)
    said = cli("run", "-c", file, "-q", *(["--resume"] if started else []))
    assert said.code == 6
    assert "may not be written (Read-only file system)" in said.error
    assert tree_bytes(run) == before


def test_two_runs_in_one_folder(world, cli):
    file, run = world.file(evaluate__rivals=[], data__target__test=None), world.root / "run"
    assert cli("search", "-c", file, "-q").code == 0
    before = tree_bytes(run)
    with RunFolder.resume(run, (run / "config.yaml").read_text()):
        for words in (["run", "--resume"], ["run", "--overwrite"], ["search", "--overwrite"], ["finalize"]):
            said = cli(*words, "-c", file, "-q")
            assert said.code == 6
            assert f"in use by process {os.getpid()} on " in said.error
        held = tree_bytes(run)
        assert {k: v for k, v in held.items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}
    # The lock of a process that was killed: its file stays, and nobody holds it.
    (run / ".lock").write_text(json.dumps({"pid": 2**22 + 1, "machine": socket.gethostname()}))
    assert cli("run", "-c", file, "-q", "--resume").code == 0


def test_the_adapter_stays_loadable_after_a_refused_second_run(world, cli):
    file = world.file(evaluate__rivals=[])
    assert cli("run", "-c", file, "-q").code == 0
    assert cli("run", "-c", file, "-q").code == 6
    assert cli("run", "-c", file, "-q", "--overwrite", "--set", "controller.p_init=65").code == 2
    assert with_peft(world.model, world.root / "run" / "export" / "adapter")
