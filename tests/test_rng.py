import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.rng import derive_seed, forked_global_state, forked_numpy_state, numpy_generator, torch_generator

SEEDS = st.integers(-(2**70), 2**70)
NAMES = st.lists(st.text(max_size=8) | st.integers(), max_size=3)


def test_seeds_never_change():
    """Fixed for ever: other numbers here would change every published result."""
    assert derive_seed(42) == 4153354983022741318
    assert derive_seed(42, "controller") == 1849098528512985137
    assert derive_seed(42, "epoch", 3) == 9197695032395454398


@settings(deadline=None)
@given(SEEDS, NAMES)
def test_a_seed_fits_every_generator_and_repeats(seed, names):
    value = derive_seed(seed, *names)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, *names)
    assert torch_generator(seed, *names).initial_seed() == value


@settings(deadline=None)
@given(SEEDS, NAMES, st.text(max_size=8).filter(lambda name: "\x1f" not in name))
def test_another_seed_or_name_is_another_stream(seed, names, extra):
    assert derive_seed(seed, *names) != derive_seed(seed + 1, *names)
    assert derive_seed(seed, *names) != derive_seed(seed, *names, extra)


def test_names_are_not_run_together():
    assert (
        len(
            {
                derive_seed(1, "ab", "c"),
                derive_seed(1, "a", "bc"),
                derive_seed(1, "abc"),
                derive_seed(1, "b", "a", "c"),
            }
        )
        == 4
    )
    assert derive_seed(1, 1) != derive_seed(11)


def test_generators_repeat_and_differ_by_name():
    one, same, other = (torch.rand(8, generator=torch_generator(3, name)) for name in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    one, same, other = (numpy_generator(3, name).random(8) for name in ("a", "a", "b"))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_making_and_using_generators_leaves_the_global_state_alone():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(3, generator=torch_generator(1))
    numpy_generator(1).random(3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def dropped(seed, *names):
    with forked_global_state(seed, *names):
        return torch.nn.functional.dropout(torch.ones(64), 0.5)


def test_a_block_of_forked_numpy_state_repeats_and_puts_everything_back():
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    drawn = []
    for names in (("a",), ("a",), ("b",)):
        with forked_numpy_state(1, *names):
            drawn.append((np.random.random(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]
    with pytest.raises(ZeroDivisionError), forked_numpy_state(1):
        _ = 1 / 0
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]


def test_a_forked_block_repeats_and_puts_the_global_state_back():
    before = torch.get_rng_state()
    first = dropped(1, "dropout", 0)
    torch.rand(5)
    assert torch.equal(first, dropped(1, "dropout", 0))
    assert not torch.equal(first, dropped(1, "dropout", 1))
    torch.set_rng_state(before)
    with pytest.raises(RuntimeError, match="shape"), forked_global_state(1):
        torch.rand(3).view(2)
    assert torch.equal(torch.get_rng_state(), before)
