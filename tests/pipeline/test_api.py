"""The stages as functions on what a user of Hugging Face libraries already has."""

import datasets
import peft
import pytest
import torch
from world import World, load_plain, with_peft

import grasp_lora
from grasp_lora import api, evaluate, export, finalize, save, search, setup, train_adapter
from grasp_lora.config import build_config
from grasp_lora.data import build_task, encode
from grasp_lora.errors import AdapterError, ConfigError, DataError, RunError
from grasp_lora.integrations import merge_into
from grasp_lora.training.setup import Setup
from pico import pico_adapter, pico_model, pico_rows, pico_tokenizer

CONFIG = {
    "task": {"language": "en", "prompt": "{context} {question}=", "max_length": 96, "max_new_tokens": 4},
    "lora": {"r": 2, "alpha": 8},
    "train_source": {"epochs": 1, "batch_size": 4, "lr": 0.02},
    "train_target": {"epochs": 1, "batch_size": 3, "lr": 0.02},
    "search": {"epochs": 1, "batch_size": 2, "lr": 0.02},
    "finalize": {"epochs": 1, "accumulation": 2, "lr": 0.02},
    "controller": {"interval": 2, "candidates": 2},
    "evaluate": {"bootstrap": 20},
}
ROWS = {name: pico_rows(count, name) for name, count in {"train": 6, "dev": 3, "micro_dev": 3, "test": 3}.items()}


def base_loss(model, rows):
    """Mean over examples of the mean cross-entropy of answer tokens, by transformers' own loss."""
    task = build_task("qa", "en", CONFIG["task"]["prompt"])
    losses = []
    for item in encode(api.examples_from_records(rows, "qa", {}, "rows"), task, pico_tokenizer(), 96).items:
        ids = torch.tensor([item.input_ids])
        labels = ids.clone()
        labels[0, : item.prompt_length] = -100
        with torch.no_grad():
            losses.append(model(ids, labels=labels).loss.item())
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def work(pico_folder):
    return setup(load_plain(pico_folder), pico_tokenizer(), config=CONFIG, source={"train": pico_rows(8, "en")}, **ROWS)


@pytest.fixture(scope="module")
def final(work):
    adapters = [train_adapter(work, "source"), train_adapter(work)]
    found = search(work, adapters)
    return adapters, found, finalize(work, adapters, found.p_star)


def test_the_story_on_objects(work, final, tmp_path, pico_folder):
    adapters, found, result = final
    assert isinstance(found, api.SearchResult)
    assert isinstance(result, api.FinalResult)
    assert found.rounds == 1
    assert result.ratio == found.p_star
    scores = evaluate(work, result)
    assert isinstance(scores, api.SystemScores)
    assert scores.score("loss").n == len(scores.predictions) == 3
    with pytest.raises(KeyError):
        scores.score("rouge")

    exported = export(work, result, tmp_path / "out")
    served = with_peft(pico_folder, exported.adapter)
    assert base_loss(served, ROWS["test"]) == pytest.approx(scores.score("loss").value, rel=1e-5)
    before = (exported.adapter / "adapter_model.safetensors").read_bytes()
    with pytest.raises(grasp_lora.errors.GraspError, match="exists"):
        export(work, result, tmp_path / "out")
    assert (exported.adapter / "adapter_model.safetensors").read_bytes() == before
    export(work, result, tmp_path / "out", overwrite=True)

    folder = save(work, adapters[1], tmp_path / "target")
    alone = evaluate(work, adapters[1]).score("loss").value
    assert evaluate(work, folder).score("loss").value == pytest.approx(alone, rel=1e-6)
    assert base_loss(with_peft(pico_folder, folder), ROWS["test"]) == pytest.approx(alone, rel=1e-5)


def test_adapters_as_folders_objects_or_trained(work, final, tmp_path):
    adapters, found, _ = final
    folders = [save(work, adapter, tmp_path / name) for name, adapter in zip(("en", "ar"), adapters, strict=True)]
    assert search(work, adapters).p_star == search(work, [adapter.factors for adapter in adapters]).p_star
    assert search(work, folders).rounds == found.rounds


def test_further_training_starts_from_the_adapter(work, final):
    adapters, _, _ = final
    tuned = train_adapter(work, start=adapters[0])
    assert tuned.outcome.train_losses[0] != adapters[1].outcome.train_losses[0]
    assert tuned.factors.modules.keys() == adapters[0].factors.modules.keys()


def test_the_bare_model_is_left_as_it_was(work, final):
    zero = evaluate(work).score("loss").value
    assert zero == pytest.approx(base_loss(work.base.model, ROWS["test"]), rel=1e-6)
    assert not any("lora" in name for name, _ in work.base.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in work.base.model.parameters())
    assert not any(module._forward_hooks for module in work.base.model.modules())


def test_examples_as_datasets_files_or_lists(pico_folder, tmp_path):
    model, tokenizer = load_plain(pico_folder), pico_tokenizer()
    path = tmp_path / "dev.jsonl"
    datasets.Dataset.from_list(ROWS["dev"]).to_json(path)
    squad = [{**row, "answers": {"text": [row["answer"]], "answer_start": [0]}} for row in ROWS["test"]]
    mixed = setup(
        model, tokenizer, train=datasets.Dataset.from_list(ROWS["train"]), dev=path, micro_dev=iter(ROWS["micro_dev"]),
        test=datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "answer"} for row in squad]),
        config=CONFIG,
    )  # fmt: skip
    plain = setup(model, tokenizer, config=CONFIG, **ROWS)
    for split in ROWS:
        assert mixed.items(split) == plain.items(split)


def test_mistakes_are_told_before_anything_is_trained(pico_folder):
    model, tokenizer = load_plain(pico_folder), pico_tokenizer()
    with pytest.raises(DataError, match=r"target\.train and target\.dev share 3"):
        setup(model, tokenizer, train=ROWS["dev"], dev=ROWS["dev"], config=CONFIG)
    with pytest.raises(DataError, match="data.micro_dev_size"):
        setup(model, tokenizer, train=ROWS["train"], micro_dev=pico_rows(20, "m"), config=CONFIG)
    with pytest.raises(DataError, match=r"target\.train, record 2: field 'question'"):
        setup(model, tokenizer, train=[ROWS["train"][0], {"context": "x", "answer": "y"}], config=CONFIG)
    with pytest.raises(ConfigError, match="interval"):
        setup(model, tokenizer, train=ROWS["train"], config={"controller": {"intervals": 3}})
    without = setup(model, tokenizer, train=ROWS["train"], config=CONFIG)
    for call in (lambda: search(without, []), lambda: evaluate(without), lambda: train_adapter(without, "source")):
        with pytest.raises(grasp_lora.errors.GraspError):
            call()
    with pytest.raises(ConfigError, match="did you mean 0.65|Did you mean 0.65"):
        finalize(without, [], 65)


def test_a_model_that_carries_adapters_is_no_base_model(pico_folder):
    wrapped = peft.get_peft_model(load_plain(pico_folder), peft.LoraConfig(target_modules=["q_proj"]))
    for carrying in (wrapped, wrapped.get_base_model()):
        with pytest.raises(AdapterError, match="carries a PEFT adapter"):
            setup(carrying, pico_tokenizer(), config=CONFIG, **ROWS)
    model = load_plain(pico_folder)
    adapters = [pico_adapter(model, name) for name in ("en", "ar")]
    merged = merge_into(model, pico_tokenizer(), adapters)
    with pytest.raises(AdapterError, match=r"carries merged adapters already.*detach"):
        setup(model, pico_tokenizer(), config=CONFIG, **ROWS)
    merged.detach()
    assert setup(model, pico_tokenizer(), config=CONFIG, **ROWS).base.model is model


def test_two_adapters_of_one_role_keep_apart(work, final):
    one, two = train_adapter(work), train_adapter(work, start=final[0][1])
    assert one.factors.name == two.factors.name
    found = api.read_adapters(work, [one, two, one])
    assert [adapter.name for adapter in found] == ["target_adapter", "target_adapter2", "target_adapter3"]
    assert found[0].sha256 == found[2].sha256 != found[1].sha256
    per_adapter = Setup(
        build_config(CONFIG | {"controller": {"policy": "ratio_per_adapter", "interval": 2}}), work.base,
        work.target, work.source,
    )  # fmt: skip
    assert set(search(per_adapter, [one, two]).best.ratios) == {"target_adapter", "target_adapter2"}


def test_what_is_no_adapter_is_told(work, final, tmp_path):
    adapters, found, result = final
    for mistake, message in (
        (lambda: search(work, "adapters/en"), "one alone was given. Give a list"),
        (lambda: search(work, [result]), "a FinalResult is no adapter"),
        (lambda: evaluate(work, found), "evaluate: a search names a point and leaves no adapter"),
        (lambda: export(work, found, tmp_path / "out"), "export: a search names a point and leaves no adapter"),
        (lambda: export(work, adapters[0], tmp_path / "out"), "takes what finalize returned, got TrainedAdapter"),
        (lambda: save(work, result, tmp_path / "out"), "takes what train_adapter returned, got FinalResult"),
    ):
        with pytest.raises(AdapterError, match=message):
            mistake()
    assert not (tmp_path / "out").exists()
    for mistake, message in (
        (lambda: finalize(work, adapters, None), "a number between 0 and 1, or a MergePoint, got NoneType"),
        (lambda: train_adapter(work, "sorce"), "role must be source or target.*Did you mean 'source'"),
        (lambda: evaluate(work, split="tset"), "split must be.*Did you mean 'test'"),
    ):
        with pytest.raises(ConfigError, match=message):
            mistake()


@pytest.mark.parametrize(
    ("first", "second", "merge"),
    [
        ({}, {"target_modules": ["k_proj", "v_proj"]}, {"weights": [1.0, -0.7]}),
        ({"layers_to_transform": [0]}, {"target_modules": ["q_proj", "down_proj"]}, {}),
        (
            {"r": 3, "use_rslora": True},
            {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"q_proj": 9.5}},
            {"rule": "sum_deltas"},
        ),
        ({"target_modules": "all-linear"}, {"bias": "none", "init_lora_weights": "gaussian"}, {}),
    ],
)
def test_adapters_unlike_each_other_are_exported_exactly(first, second, merge, pico_folder, tmp_path):
    world = World(tmp_path, pico_folder)
    work = setup(load_plain(pico_folder), pico_tokenizer(), config=CONFIG | {"merge": merge}, **ROWS)
    result = finalize(work, [world.adapter("one", **first), world.adapter("two", **second)], 0.4)
    folder = export(work, result, tmp_path / "out").adapter
    assert base_loss(with_peft(pico_folder, folder), ROWS["test"]) == pytest.approx(
        sum(evaluate(work, result).losses) / 3, abs=1e-5
    )


def test_an_export_is_written_whole_or_not_at_all(work, final, tmp_path):
    (tmp_path / "factors.sparse.safetensors").write_bytes(b"mine")
    with pytest.raises(RunError, match="exists and is not overwritten"):
        export(work, final[2], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["factors.sparse.safetensors"]


def test_a_search_that_kept_its_adapter_is_a_final_run(work, final, tmp_path):
    settings = CONFIG | {"finalize": {"adapter": "reuse"}, "search": CONFIG["search"] | {"epochs": 2}}
    kept = Setup(build_config(settings), work.base, work.target, work.source)
    found = search(kept, final[0])
    assert evaluate(kept, found).scores == evaluate(kept, found.final).scores
    assert export(kept, found, tmp_path / "out").density_before == found.final.density


def test_a_model_that_came_from_nowhere_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    made = setup(pico_model("llama"), pico_tokenizer(), train=ROWS["train"], config=CONFIG)
    assert made.base.fingerprint == "commit:None"
    assert made.base.name == "llama"


def test_every_name_is_there_and_no_other():
    for name in grasp_lora.__all__:
        assert callable(getattr(grasp_lora, name))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = grasp_lora.serach
