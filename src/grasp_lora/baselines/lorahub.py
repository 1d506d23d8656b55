"""LoRAHub (Huang et al., arXiv 2307.13269): weights of the adapters by a gradient-free optimizer on a few examples.

`dW = s (sum_k w_k B_k)(sum_k w_k A_k)`; 40 steps of nevergrad's NGOpt from weights 0 in [-1.5, 1.5], on the mean loss
plus 0.05 times the mean absolute weight. The examples are micro-dev: the target adapter has seen train.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.inject import Injection
from ..config import MergeConfig
from ..errors import MissingExtraError
from ..rng import derive_seed, forked_numpy_state
from .method import Method, MethodContext, MethodResult, register
from .peft_merges import require_equal_ranks

PAPER = "https://arxiv.org/abs/2307.13269"
STEPS, BOUND, L1 = 40, 1.5, 0.05


def weighted(bank: AdapterBank, weights: Sequence[float]) -> Tensor:
    """Return the bank's values with A and B of adapter k times `weights[k]`, shape (n,)."""
    per_slot = torch.tensor([weights[slot.adapter] for slot in bank.slots], dtype=bank.values.dtype)
    sizes = torch.tensor([slot.size for slot in bank.slots])
    return bank.dense() * torch.repeat_interleave(per_slot, sizes).to(bank.values)


def _optimizer(adapters: int, seed: int) -> Any:
    try:
        import nevergrad
    except ImportError:
        raise MissingExtraError("nevergrad", "baselines", "method lorahub") from None
    space = nevergrad.p.Array(init=[0.0] * adapters, lower=[-BOUND] * adapters, upper=[BOUND] * adapters)
    # nevergrad draws from the old kind of generator, which `derive_seed` does not make.
    space.random_state = np.random.RandomState(derive_seed(seed, "lorahub") % 2**32)
    return nevergrad.optimizers.NGOpt(parametrization=space, budget=STEPS)


def _lorahub(context: MethodContext) -> MethodResult:
    require_equal_ranks("lorahub", context.adapters)
    with forked_numpy_state(context.config.seed, "lorahub"):
        return _searched(context)


def _searched(context: MethodContext) -> MethodResult:
    optimizer = _optimizer(len(context.adapters), context.config.seed)
    merge = MergeConfig(rule="sum_factors", scaling=context.config.merge.scaling)
    setup = replace(context.setup, config=context.config.model_copy(update={"merge": merge}))
    bank = setup.bank(context.adapters)
    with Injection(setup.base.model, bank.modules) as injection, warnings.catch_warnings():
        # NGOpt chooses COBYLA for two weights and passes it a final radius that SciPy remarks on.
        warnings.filterwarnings("ignore", "COBYLA: Invalid RHOEND", UserWarning)
        probe = setup.evaluator(
            setup.attach(injection, bank), "micro_dev", batch_size=setup.config.search.eval_batch_size
        )
        for _ in range(STEPS):
            candidate = optimizer.ask()
            weights = [float(value) for value in candidate.value]
            loss = float(probe.flat_losses(weighted(bank, weights)[None]).mean())
            optimizer.tell(candidate, loss + L1 * float(np.mean(np.abs(weights))))
        best = [float(value) for value in optimizer.provide_recommendation().value]
    with torch.no_grad():
        bank.values.copy_(weighted(bank, best))
    return MethodResult(bank, forward_tokens=probe.token_passes, details={"weights": best, "steps": STEPS})


register(
    Method(
        "lorahub", "LoRAHub", "dW = s (sum_k w_k B_k)(sum_k w_k A_k); w by 40 gradient-free steps", PAPER,
        ("micro_dev",), "all", _lorahub, extra=True,
    )
)  # fmt: skip
