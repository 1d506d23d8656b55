"""The final run: exact counts at every ratio, static and dynamic masks, and the epoch that is kept."""

from __future__ import annotations

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.importance import magnitude
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import prune_count, rank
from grasp_lora.errors import ConfigError, DataError
from grasp_lora.pipeline.finalize import check_ratio, finalize

FINAL = {"epochs": 3, "lr": 2e-2, "batch_size": 4, "accumulation": 1}


def run(ratio, *, dtype=torch.float32, counts=None, prune=None, **final):
    model = pico_model("llama", dtype)
    work = pico_setup(model, {"finalize": FINAL | final, "prune": prune or {}}, **(counts or {}))
    adapters = [pico_adapter(model, "en"), pico_adapter(model, "ar")]
    start = work.bank(adapters)
    return finalize(work, adapters, ratio, Recorder("finalize")), start, work


def dev_loss(work, bank):
    with Injection(work.base.model, bank.modules) as injection:
        return work.evaluator(work.attach(injection, bank), "dev").losses()


@pytest.mark.parametrize("mask", ["static", "dynamic"])
@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
@pytest.mark.parametrize("ratio", [0.0, 0.29, 1.0])
def test_the_density_is_exact_at_every_ratio(ratio, importance, mask):
    final, start, work = run(ratio, mask=mask, prune={"importance": importance})
    sizes = start.segments("per_tensor")
    pruned = sum(prune_count(ratio, size) for size in sizes)
    assert final.density == 1 - pruned / sum(sizes)
    assert int((final.bank.values == 0).sum()) == pruned
    assert not bool(torch.signbit(final.bank.values[~final.bank.kept]).any())
    assert len(final.outcome.dev_losses) == 3
    if ratio == 1.0:
        with Injection(work.base.model, start.modules) as injection:
            bare = work.evaluator(work.attach(injection, start), "dev").bare_losses()
        assert final.outcome.dev_losses == pytest.approx([float(bare.mean())] * 3, abs=1e-5)
    else:
        assert not torch.equal(final.bank.dense(), start.dense())


def test_nothing_is_selected_when_nothing_is_pruned():
    """p = 0 is plain fine-tuning of the merge, and needs no micro-dev whatever the importance."""
    final, _, _ = run(0.0, prune={"importance": "activation"}, counts={"micro_dev": 0})
    assert final.density == 1.0
    assert final.flips == ()
    with pytest.raises(DataError, match="micro_dev"):
        run(0.5, prune={"importance": "activation"}, counts={"micro_dev": 0})
    run(0.5, counts={"micro_dev": 0})


def test_the_final_run_may_rank_by_another_importance_than_the_search():
    own, _, _ = run(0.45, prune={"importance": "magnitude"}, importance="activation")
    both, _, _ = run(0.45, prune={"importance": "activation"})
    plain, _, _ = run(0.45, prune={"importance": "magnitude"})
    assert torch.equal(own.bank.kept, both.bank.kept)
    assert not torch.equal(own.bank.kept, plain.bank.kept)
    with pytest.raises(DataError, match="micro_dev"):
        run(0.5, importance="activation", counts={"micro_dev": 0})


def test_a_static_mask_is_the_one_of_the_untouched_merge():
    final, start, _ = run(0.45)
    assert torch.equal(final.bank.kept, rank(magnitude(start), start.segments("per_tensor")).kept(0.45))
    assert final.flips == ()
    assert torch.equal(final.bank.stash, torch.where(final.bank.kept, 0.0, start.values.detach()))


def test_a_dynamic_mask_is_selected_again_after_every_update_with_the_same_count():
    final, start, _ = run(0.45, mask="dynamic", counts={"dev": 0})
    assert len(final.flips) == final.outcome.steps == 9
    assert any(share > 0 for share in final.flips)
    assert not torch.equal(final.bank.kept, rank(magnitude(start), start.segments("per_tensor")).kept(0.45))
    # After the last update it is the ranking of the values as they are, pruned ones at their stash.
    assert torch.equal(final.bank.kept, rank(magnitude(final.bank), start.segments("per_tensor")).kept(0.45))


def test_the_best_epoch_by_dev_loss_is_kept():
    final, _, work = run(0.3, epochs=6, lr=1.0, batch_size=2, patience=6, mask="dynamic")
    losses = final.outcome.dev_losses
    assert len(losses) == 6
    best = min(range(6), key=losses.__getitem__)
    assert best < 5  # or the test says nothing
    assert final.outcome.best_epoch == best
    assert float(dev_loss(work, final.bank).mean()) == losses[best]


def test_without_dev_the_last_epoch_is_kept():
    longer, _, _ = run(0.3, lr_decay=1.0, counts={"dev": 0})
    assert longer.outcome.best_epoch is None
    assert longer.outcome.dev_losses == ()
    judged, _, work = run(0.3, lr_decay=1.0)
    # Judging changes nothing in training: the run without dev ends where the judged one ended.
    assert float(dev_loss(work, longer.bank).mean()) == judged.outcome.dev_losses[-1]


def test_ranking_all_tensors_together_keeps_the_total_count():
    final, start, _ = run(0.5, prune={"scope": "global"})
    shares = [float(mask.float().mean()) for mask in final.bank.masks().values()]
    assert int(final.bank.kept.sum()) == start.values.numel() - prune_count(0.5, start.values.numel())
    assert max(shares) - min(shares) > 0.01


@pytest.mark.parametrize("ratio", [-0.1, 1.5, 65, float("nan")])
def test_a_ratio_outside_is_refused(ratio):
    hint = "Did you mean 0.65" if ratio == 65 else "between 0 and 1"
    with pytest.raises(ConfigError, match=hint):
        run(ratio)


def test_check_ratio_returns_what_is_fine():
    assert [check_ratio(p) for p in (0.0, 0.65, 1.0)] == [0.0, 0.65, 1.0]
