"""Settings of `speed`: what saves time and changes results by rounding only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import PositiveInt, Section


class SpeedConfig(Section):
    """What saves time and changes results by rounding only (docs/performance.md)."""

    static_cache: bool = Field(
        True, description="generation on a GPU: a cache of fixed size, and the step of one token captured once"
    )
    pack_accumulation: bool = Field(
        True, description="run an update's examples, sorted by length, in as few passes as tokens_per_pass allows"
    )
    tokens_per_pass: PositiveInt | None = Field(
        None,
        description="most tokens of such a pass, padding included; default batch_size times the longest example, "
        "which is no more tokens than passes of batch_size examples hold; on a GPU up to 4096 if they fit",
    )
    join_rows: bool = Field(
        True, description="the sequences of a training pass one after the other, without padding, where that is exact"
    )
    skip_mask: bool = Field(
        True, description="no attention mask where causal attention over right padding needs none (faster kernels)"
    )
    cudnn_from: PositiveInt = Field(
        512,
        description="on a GPU, length from which attention may use cuDNN's kernels, which are faster than PyTorch's "
        "and plan 0.1 s for each new shape; 1: always",
    )
    narrow_last: bool = Field(
        True, description="the last layer's feed-forward block on answer positions only, like the head behind it"
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, record training passes as CUDA graphs, one per shape, and replay them"
    )
    compile_layers: Literal["none", "probes", "all"] = Field(
        "none",
        description="torch.compile of the decoder layers, for rounds of probes or for training too (takes seconds)",
    )
    fused_norms: bool = Field(True, description="on a GPU, RMS norms in one kernel, unless layers are compiled for all")
    fused_kernels: bool = Field(
        True,
        description="on a GPU with Triton, rotations and gated activations in a kernel each, unless layers are "
        "compiled, and activation importance in two for every shape",
    )
    fused_optimizer: bool = Field(True, description="on a GPU, AdamW in one kernel")
    read_losses_every: PositiveInt = Field(
        10, description="on a GPU, updates after which their losses are looked at; every look waits for the GPU"
    )
