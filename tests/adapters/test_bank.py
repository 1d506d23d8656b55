"""The bank: prune, stash, revive to the bit; gradients and moments of pruned entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pico import pico_adapter, pico_model
from torch import Tensor

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.importance import magnitude
from grasp_lora.adapters.masks import prune_count, rank
from grasp_lora.adapters.merge import RULES
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.config import MergeConfig
from grasp_lora.errors import ConfigError
from grasp_lora.training import commit_mask

N = 24


def small(rule: str = "sum_factors", **merge: object) -> AdapterBank:
    """Two adapters on one module, 24 entries; one of them is -0.0 and one a denormal number."""
    draw = torch.Generator().manual_seed(3)
    factors = [Factor(torch.randn(2, 3, generator=draw), torch.randn(3, 2, generator=draw), 1.0 + k) for k in range(2)]
    factors[0].A[0, 0], factors[1].B[2, 1] = -0.0, 1e-42
    adapters = [AdapterFactors(str(k), "", "", {"m": factor}) for k, factor in enumerate(factors)]
    return AdapterBank(adapters, MergeConfig(rule=rule, **merge))


def bits(values: Tensor) -> list[int]:
    return values.detach().view(torch.int32).tolist()


def mask(seed: int, share: float = 0.5) -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(seed)) >= share


MASKS = st.lists(st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor), max_size=6)


@given(MASKS)
@settings(max_examples=50)
def test_any_sequence_of_commits_is_undone_to_the_bit(masks):
    bank = small()
    before = bits(bank.values)
    for kept in masks:
        old = bank.kept.clone()
        report = bank.commit(kept)
        assert (report.pruned, report.revived) == (int((old & ~kept).sum()), int((kept & ~old).sum()))
        assert report.flipped == (report.pruned + report.revived) / N
        assert report.density == bank.density() == int(kept.sum()) / N
        assert bits(bank.values[~kept]) == [0] * int((~kept).sum())
        assert bits(bank.dense()) == before
        assert bits(bank.stash[kept]) == [0] * int(kept.sum())
    bank.commit(torch.ones(N, dtype=torch.bool))
    assert bits(bank.values) == before


def test_what_training_made_of_an_entry_is_what_comes_back():
    bank = small()
    bank.commit(mask(1))
    with torch.no_grad():
        bank.values.add_(bank.kept * 0.25)
    trained = bits(bank.dense())
    bank.commit(mask(2))
    bank.commit(mask(1))
    assert bits(bank.dense()) == trained


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 1.0])
def test_the_mask_keeps_its_own_copy_and_density_is_that_of_the_values(ratio):
    bank = AdapterBank([pico_adapter(pico_model("llama"), "en")], MergeConfig())
    sizes = bank.segments("per_tensor")
    kept = rank(magnitude(bank), sizes).kept(ratio)
    density = bank.commit(kept).density
    kept.fill_(False)
    measured = int(bank.values.count_nonzero()) / bank.values.numel()
    assert bank.density() == density == measured == 1 - sum(prune_count(ratio, n) for n in sizes) / sum(sizes)


def test_enforced_zeros_are_positive_and_kept_entries_untouched():
    bank = small()
    bank.commit(mask(1))
    kept = bits(bank.values[bank.kept])
    with torch.no_grad():
        bank.values[~bank.kept] = torch.tensor([-1.0, float("nan"), float("-inf")]).repeat(N)[: int((~bank.kept).sum())]
    bank.enforce()
    assert set(bits(bank.values[~bank.kept])) == {0}
    assert bits(bank.values[bank.kept]) == kept


def test_masked_gradients_are_zero_even_where_they_were_not_finite():
    bank = small()
    bank.mask_gradient()
    assert bank.values.grad is None
    bank.commit(mask(1))
    bank.values.grad = torch.full((N,), float("inf"))
    bank.values.grad[bank.kept] = 3.0
    bank.mask_gradient()
    assert bank.values.grad.tolist() == [3.0 if kept else 0.0 for kept in bank.kept]


def test_moments_of_newly_pruned_entries_are_cleared_and_no_others():
    bank = small()
    optimizer = torch.optim.AdamW([bank.values], lr=0.1, weight_decay=0.0)
    assert commit_mask(bank, torch.ones(N, dtype=torch.bool), optimizer).pruned == 0
    first, second = mask(1), mask(2)
    commit_mask(bank, first, optimizer)
    for _ in range(3):
        bank.values.grad = torch.linspace(-1, 1, N)
        bank.mask_gradient()
        optimizer.step()
        assert bits(bank.values[~first]) == [0] * int((~first).sum())
    moments = optimizer.state[bank.values]
    before = {name: moments[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    commit_mask(bank, second, optimizer)
    gone = first & ~second
    assert bool(gone.any())
    for name, old in before.items():
        assert bool((old[gone] != 0).any())
        assert torch.equal(moments[name], torch.where(gone, 0.0, old))
    assert float(moments["step"]) == 3


def test_what_amsgrad_keeps_at_most_is_cleared_too():
    bank, kept = small(), mask(1)
    optimizer = torch.optim.AdamW([bank.values], amsgrad=True)
    bank.values.grad = torch.ones(N)
    optimizer.step()
    commit_mask(bank, kept, optimizer)
    most = optimizer.state[bank.values]["max_exp_avg_sq"]
    assert torch.equal(most != 0, kept)


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_the_sums_of_adagrad_go_back_to_where_they_began(start):
    bank, kept = small(), mask(1)
    optimizer = torch.optim.Adagrad([bank.values], initial_accumulator_value=start)
    bank.values.grad = torch.ones(N)
    optimizer.step()
    commit_mask(bank, kept, optimizer)
    assert torch.equal(optimizer.state[bank.values]["sum"], torch.where(kept, torch.tensor(1 + start), start))


class Kept(torch.optim.Optimizer):
    """An optimizer with a state of any kind for its one parameter."""

    def __init__(self, values: torch.Tensor, state: dict[str, object]) -> None:
        super().__init__([values], {})
        self.state[values].update(state)


class Quantized(torch.Tensor):
    """Stands for tensors that hold codes and scales."""


@pytest.mark.parametrize(
    "state",
    [
        {"exp_avg_sq_row": torch.ones(3)},
        {"state1": torch.full((N,), 127, dtype=torch.uint8)},
        {"exp_avg": torch.ones(N).as_subclass(Quantized)},
        {"exp_avg_sq": torch.ones(N), "z": torch.ones(N)},
        {"step_size": torch.ones(N)},
        {"exp_avg": torch.ones(N), "p0": torch.ones(N)},
    ],
)
def test_an_optimizer_whose_moments_cannot_be_cleared_by_entry_is_refused_and_nothing_changes(state):
    bank = small()
    optimizer = Kept(bank.values, {"step": torch.tensor(3.0), "name": "x", **state})
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(ConfigError, match=rf"optimizer Kept: its state '{list(state)[-1]}' .*AdamW"):
        commit_mask(bank, mask(1), optimizer)
    assert bank.density() == 1.0
    assert all(torch.equal(state[name], old) for name, old in before.items())


def test_states_of_any_name_are_cleared_and_numbers_are_left_alone():
    bank, kept = small(), mask(1)
    numbers = {"step": 3, "eta": torch.tensor([0.5]), "RMS": torch.tensor(2.0), "momentum_buffer": None}
    optimizer = Kept(bank.values, {"square_avg": torch.ones(N), **numbers})
    commit_mask(bank, kept, optimizer)
    state = optimizer.state[bank.values]
    assert torch.equal(state["square_avg"], kept.float())
    assert {name: state[name] for name in numbers} == numbers


@pytest.mark.parametrize("rule", list(RULES))
def test_batched_merge_is_the_merge_of_each(rule):
    bank = small(rule, weights=(1.0, -0.5), strength=0.8)
    flat = torch.stack([bank.dense() * mask(seed) for seed in range(3)])
    stacked = bank.merged(flat)["m"]
    for row in range(3):
        for ours, one in zip(stacked, bank.merged(flat[row])["m"], strict=True):
            assert torch.equal(ours[row], one)


def test_the_gradient_of_the_flat_values_is_that_of_the_tensors():
    bank = small()
    a, b = bank.merged()["m"]
    (b @ a).square().sum().backward()
    parts = [t.detach().clone().requires_grad_() for t in bank.split(bank.values.detach())]
    c = [slot.constant for slot in bank.slots]
    left = c[1] * parts[1] + c[3] * parts[3]
    right = c[0] * parts[0] + c[2] * parts[2]
    (left @ right).square().sum().backward()
    torch.testing.assert_close(bank.values.grad, torch.cat([p.grad.flatten() for p in parts]))


def test_saved_tensors_are_masked_and_the_state_goes_back_to_the_bit():
    bank = small()
    bank.commit(mask(1))
    tensors, masks = bank.tensors(), bank.masks()
    assert set(tensors) == set(masks) == {"m.0.A", "m.0.B", "m.1.A", "m.1.B"}
    assert all(not bool(tensors[key][~masks[key]].any()) for key in tensors)
    state, parameter = bank.state(), bank.values
    bank.commit(mask(2))
    with torch.no_grad():
        bank.values.add_(1.0)
    bank.load_state(state)
    assert bank.values is parameter
    for name, value in bank.state().items():
        assert torch.equal(value, state[name]), name
    bank.commit(torch.ones(N, dtype=torch.bool))
    assert bits(bank.values) == bits(small().values)


def test_constants_follow_the_slots():
    bank = small(weights=(1.0, -2.0))
    assert bank.constants().tolist() == pytest.approx([1.0] * 12 + [2.0] * 12)
    assert bank.signs == (1.0, -1.0)
