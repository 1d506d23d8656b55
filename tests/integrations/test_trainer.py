"""The callbacks on `transformers.Trainer`: the same search as our own loop, its checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from grasp_lora import api
from grasp_lora.adapters.peft_load import Factor
from grasp_lora.data import epoch_order
from grasp_lora.errors import AdapterError, ConfigError, DataError, RunError
from grasp_lora.integrations import GraspCallback, HoldRatioCallback, merge_into
from grasp_lora.integrations.probes import encoded_rows
from integrations.trainer_world import TRAINING, World, rows
from pico import pico_adapter, pico_model, pico_setup, pico_tokenizer
from pipeline.world import with_peft


@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
def test_a_search_is_the_one_of_our_own_loop(importance, tmp_path):
    world = World(prune={"importance": importance})
    ours = api.search(world.work, world.adapters)
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    world.trainer(merged, callback, tmp_path).train()
    theirs = callback.result()
    assert (theirs.rounds, theirs.evaluations) == (ours.rounds, ours.evaluations) == (6, theirs.evaluations)
    assert theirs.p_star == pytest.approx(ours.p_star, abs=1e-6)
    assert theirs.interval == pytest.approx(ours.interval, abs=1e-6)
    assert theirs.probe_tokens == ours.probe_tokens
    pruned = merged.values.detach()[~merged.bank.kept]
    assert len(pruned)
    assert not pruned.any()
    assert [row["round"] for row in callback.history] == list(range(7))


def test_one_training_that_searches_and_keeps_its_adapter(tmp_path):
    world = World(finalize={"adapter": "reuse"}, search={"epochs": 2, "lr": 0.01, "lr_decay": 1.0})
    world.work = pico_setup(world.model, world.config, dev=0)
    items = world.work.items("train")
    orders = [epoch_order(len(items), world.work.config.seed, epoch) for epoch in range(2)]
    world.train = rows([items[i] for order in orders for i in order])
    ours = api.search(world.work, world.adapters)
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    trainer = world.trainer(merged, callback, tmp_path)
    trainer.train()
    assert trainer.state.global_step == ours.outcome.steps == len(world.train)
    assert callback.result().best == ours.best
    assert torch.equal(merged.bank.kept, ours.final.bank.kept)
    assert torch.allclose(merged.values, ours.final.bank.values, atol=1e-6)


def test_clipping_sees_the_same_gradients(tmp_path):
    world = World(search={"epochs": 1, "lr": 0.01, "lr_decay": 1.0, "max_grad_norm": 0.5, "accumulation": 3})
    world.config = {**world.config, "finalize": world.config["search"]}
    world.work = pico_setup(world.model, world.config, dev=0)
    ours = api.finalize(world.work, world.adapters, 0.7)
    merged = world.merged()
    settings = {"max_grad_norm": 0.5, "gradient_accumulation_steps": 3}
    trainer = world.trainer(merged, HoldRatioCallback(merged, 0.7), tmp_path, **settings)
    trainer.model_accepts_loss_kwargs = False  # the mean over examples, as ours, not over tokens
    trainer.train()
    assert torch.allclose(merged.values, ours.bank.values, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own default
def test_trl_trains_the_same(tmp_path):
    """Its trainer computes the head's losses itself and calls only the part below: the update must be there."""
    world = World(prune={"importance": "activation"})
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    world.trainer(merged, callback, tmp_path).train()
    plain, values = callback.result(), merged.values.detach().clone()
    merged = merge_into(merged.detach(), pico_tokenizer(), world.adapters, config=world.config)
    callback = GraspCallback(merged, world.micro)
    args = SFTConfig(
        str(tmp_path), **TRAINING, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}, shuffle_dataset=False
    )
    SFTTrainer(
        model=merged, args=args, train_dataset=Dataset.from_list(world.train), processing_class=pico_tokenizer(),
        callbacks=[callback],
    ).train()  # fmt: skip
    assert torch.allclose(merged.values, values, atol=1e-5)
    assert callback.result().p_star == pytest.approx(plain.p_star, abs=1e-5)


@pytest.mark.parametrize("mask", ["static", "dynamic"])
def test_holding_a_ratio_is_the_final_run_of_our_own_loop(mask, tmp_path):
    final = {"epochs": 1, "lr": 0.01, "lr_decay": 1.0, "accumulation": 1, "mask": mask}
    world = World(finalize=final, prune={"importance": "activation"})
    world.work = pico_setup(world.model, world.config, dev=0)
    ours = api.finalize(world.work, world.adapters, 0.6)
    merged = world.merged()
    world.trainer(merged, HoldRatioCallback(merged, 0.6, world.micro), tmp_path).train()
    assert torch.equal(merged.bank.kept, ours.bank.kept)
    assert torch.allclose(merged.values, ours.bank.values, atol=1e-6)
    assert merged.bank.density() == ours.density


def test_a_training_that_is_resumed_goes_on_to_the_bit(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    world = World(prune={"importance": "activation"})
    parts = world.merged()
    world.trainer(parts, GraspCallback(parts, world.micro), tmp_path / "parts", **settings, max_steps=7).train()
    parts.detach()
    again = world.merged()
    callback = GraspCallback(again, world.micro)
    resumed = world.trainer(again, callback, tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-6"))
    again.detach()
    whole = world.merged()
    straight = GraspCallback(whole, world.micro)
    world.trainer(whole, straight, tmp_path / "whole", **settings).train()
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.bank.kept, whole.bank.kept)
    assert torch.equal(again.bank.stash, whole.bank.stash)
    assert without_times(callback.history) == without_times(straight.history)
    assert callback.result() == straight.result()


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in history]


def test_a_checkpoint_holds_the_adapters_and_not_the_base(tmp_path):
    world = World()
    merged = world.merged()
    world.trainer(merged, GraspCallback(merged, world.micro), tmp_path, save_strategy="steps", save_steps=12).train()
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert torch.equal(saved["bank.values"], merged.values)
    assert {key.partition(".")[0] for key in saved} == {"bank", "plain"}


def test_the_best_checkpoint_is_loaded_at_the_end_and_the_answer_stays(tmp_path):
    world = World()
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    settings |= {"load_best_model_at_end": True, "greater_is_better": True}  # the loss falls, so the first is "best"
    trainer = world.trainer(merged, callback, tmp_path, **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert torch.equal(merged.values, load_file(best / "model.safetensors")["bank.values"])
    assert not torch.equal(merged.values, load_file(tmp_path / "checkpoint-12" / "model.safetensors")["bank.values"])
    assert callback.result().rounds == 6


def test_gradient_checkpointing_changes_nothing(tmp_path):
    found = []
    for switch in (False, True):
        world = World(prune={"importance": "activation"})
        merged = world.merged()
        callback = GraspCallback(merged, world.micro)
        world.trainer(merged, callback, tmp_path / str(switch), activation_checkpointing=switch).train()
        assert merged.causal_lm.is_activation_checkpointing == switch
        found.append((callback.result(), merged.values.detach()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_the_merge_generates_as_its_export_does_and_comes_off_without_a_trace(tmp_path):
    world = World()
    world.model.save_pretrained(tmp_path / "pico")
    prompt = torch.tensor([[1, 70, 71, 72]])
    bare = world.model(prompt).logits
    merged = world.merged()
    callback = HoldRatioCallback(merged, 0.5)
    world.trainer(merged, callback, tmp_path, bf16=False).train()
    merged.eval()
    with torch.no_grad():
        logits, text = merged(prompt).logits, merged.generate(prompt, max_new_tokens=5, do_sample=False)
    exported = merged.export(tmp_path / "out")
    served = with_peft(tmp_path / "pico", exported.adapter)
    with torch.no_grad():
        assert torch.allclose(served(prompt).logits, logits, atol=1e-5)
        assert torch.equal(served.generate(prompt, max_new_tokens=5, do_sample=False), text)
    assert exported.density_before == pytest.approx(0.5, abs=0.01)
    model = merged.detach()
    assert model is world.model
    assert torch.equal(model(prompt).logits, bare)
    assert not torch.equal(logits, bare)


def test_saving_as_a_model_does_not_lose_the_adapters_in_silence(tmp_path):
    with pytest.raises(AdapterError, match=r"without its adapters. Use export\(folder\)"):
        World().merged().save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_merge_at_a_time(tmp_path):
    world = World()
    merged = world.merged()
    with pytest.raises(AdapterError, match="carries merged adapters already"):
        world.merged()
    merged.detach()
    assert world.merged().values.requires_grad


def test_moving_the_model_moves_mask_and_stash_and_keeps_the_parameter():
    merged = World().merged()
    before = merged.values
    merged.to(torch.float64)
    assert merged.values is before is merged.bank.values
    assert merged.bank.stash.dtype == torch.float64


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2]}, "no labels"),
        ({"input_ids": [1, 2], "labels": [2]}, "2 input_ids, but 1 labels"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no token is learnt"),
        ({"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4]}, "up to one token"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 0, 1]}, "in front and behind only"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1]}, "as long as input_ids"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [0, 0]}, "no token is learnt"),
    ],
)
def test_micro_dev_rows_that_are_no_use(row, message):
    with pytest.raises(DataError, match=message):
        GraspCallback(World().merged(), [row])


def test_padding_at_the_end_of_a_row_is_cut_off():
    (item,) = encoded_rows([{"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100]}])
    assert (item.input_ids, item.prompt_length) == ((5, 6, 7), 1)


def test_padding_in_front_of_a_row_is_cut_off_by_its_attention_mask():
    row = {"input_ids": [0, 0, 5, 6, 7, 0], "labels": [-100, -100, -100, 6, 7, -100]}
    (item,) = encoded_rows([row | {"attention_mask": torch.tensor([0, 0, 1, 1, 1, 0])}])
    assert (item.input_ids, item.prompt_length) == ((5, 6, 7), 1)


def test_too_many_micro_dev_examples():
    world = World(data={"micro_dev_size": 6})
    with pytest.raises(DataError, match="micro_dev_size is 6"):
        GraspCallback(world.merged(), [*world.micro, world.micro[0]])


def test_a_result_before_any_training():
    with pytest.raises(RunError, match="no training has begun"):
        GraspCallback((world := World()).merged(), world.micro).result()


def test_a_ratio_given_as_a_percentage():
    with pytest.raises(ConfigError, match=r"Did you mean 0\.65"):
        HoldRatioCallback(World().merged(), 65)


def test_statistics_without_micro_dev(tmp_path):
    world = World(prune={"importance": "activation"})
    merged = world.merged()
    with pytest.raises(ConfigError, match="needs micro-dev examples"):
        world.trainer(merged, HoldRatioCallback(merged, 0.5), tmp_path).train()


def test_a_checkpoint_of_another_merge(tmp_path):
    world = World()
    merged = world.merged()
    world.trainer(merged, GraspCallback(merged, world.micro), tmp_path, save_strategy="steps", save_steps=12).train()
    merged.detach()
    world.config = {**world.config, "merge": {"strength": 0.5}}
    other = world.merged()
    trainer = world.trainer(other, GraspCallback(other, world.micro), tmp_path)
    with pytest.raises(RunError, match=r"merge\.strength was 1\.0, is 0\.5"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_a_checkpoint_of_another_callback(tmp_path):
    world = World()
    merged = world.merged()
    world.trainer(merged, HoldRatioCallback(merged, 0.5), tmp_path, save_strategy="steps", save_steps=6).train()
    trainer = world.trainer(merged, GraspCallback(merged, world.micro), tmp_path)
    with pytest.raises(RunError, match="written without GraspCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_sharded_parameters_and_several_gpus_in_one_process(tmp_path, monkeypatch):
    world = World()
    merged = world.merged()
    trainer = world.trainer(merged, GraspCallback(merged, world.micro), tmp_path)
    monkeypatch.setattr(trainer.args.distributed_state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="FSDP splits the parameters"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    monkeypatch.undo()
    monkeypatch.setattr(trainer.args, "_n_gpu", 2)
    with pytest.raises(ConfigError, match="2 GPUs in one process"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_a_model_with_peft_adapters_or_an_adapter_of_the_head():
    model = pico_model("llama")
    wrapped = peft.get_peft_model(pico_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="bare base model"):
        merge_into(wrapped, pico_tokenizer(), [])
    head = pico_adapter(model, "head", modules=["q_proj"])
    shape = model.lm_head.weight.shape
    head.modules["lm_head"] = Factor(torch.ones(4, shape[1]), torch.ones(shape[0], 4), 1.0)
    with pytest.raises(AdapterError, match="output head"):
        merge_into(model, pico_tokenizer(), [head, head])


def test_a_quantized_base_is_trained_like_any_other(tmp_path):
    world = World()
    world.model.is_quantized = True
    merged = world.merged()
    trainer = world.trainer(merged, HoldRatioCallback(merged, 0.5), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
