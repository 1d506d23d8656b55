"""Fused kernels in layers: which qualify, what they compute, and that everything is given back.

With stand-ins for the kernels everywhere; with the kernels themselves on a GPU, or on a CPU with Triton's interpreter
(`make kernels`).
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from tests.pico import FAMILIES, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.kernels import kernels_run
from grasp_lora.probing import fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not kernels_run(DEVICE), reason="needs Triton and a GPU, or its interpreter")
QUALIFY = {  # blocks and attention of two layers
    "llama": 4, "qwen3": 4, "mistral": 4, "gemma": 2, "gemma3": 2, "gpt_neox": 2, "gpt2": 0,
}  # fmt: skip


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


@pytest.fixture
def stand_ins(monkeypatch):
    """Kernels in plain PyTorch, which count how often they run."""
    ran = {"gated": 0, "turned": 0}

    def gated(gate, up):
        ran["gated"] += 1
        return torch.nn.functional.silu(gate) * up

    def turned(x, cos, sin):
        ran["turned"] += 1
        return x * cos[:, None] + rotate_half(x) * sin[:, None]

    kernels = SimpleNamespace(gated=gated, turned=turned)
    monkeypatch.setitem(sys.modules, "grasp_lora.probing.triton_kernels", kernels)
    monkeypatch.setattr(fused, "kernels_run", lambda _: True)
    return ran


def numbers(model, embedded):
    """Logits, and the gradient of their squares for the embeddings."""
    x = embedded.clone().requires_grad_()
    logits = model(inputs_embeds=x).logits
    return logits.detach(), torch.autograd.grad(logits.square().mean(), x)[0]


def compare(family, dtype, tolerance, device):
    model = pico_model(family, dtype).to(device).requires_grad_(False)
    ids = torch.arange(3, 27, device=device).reshape(2, 12)
    embedded = model.get_input_embeddings()(ids).detach()
    plain = numbers(model, embedded)
    overrides = fused.fuse_layers(model)
    assert len(overrides) == QUALIFY[family]
    for found, wanted in zip(numbers(model, embedded), plain, strict=True):
        assert (found - wanted).norm() <= tolerance * wanted.norm()
    overrides.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(numbers(model, embedded)[0], plain[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_qualifies_computes_the_same_and_is_given_back(family, stand_ins):
    compare(family, torch.float32, 1e-5, torch.device("cpu"))
    assert (stand_ins["turned"] > 0) is (QUALIFY[family] > 0)
    assert (stand_ins["gated"] > 2) is (QUALIFY[family] > 2)  # the first ones try the blocks out


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_kernels_compute_what_layers_do(family, dtype, tolerance):
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter rounds bfloat16 otherwise")
    compare(family, dtype, tolerance, DEVICE)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 5, 3, 6), (3, 7, 32, 128)])
def test_odd_sizes_strides_and_tables_for_each_row(shape):
    from grasp_lora.probing.triton_kernels import gated, turned

    batch, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, heads, width, generator=generator).to(DEVICE).transpose(1, 2).requires_grad_()
    given = torch.randn(batch, heads, tokens, width, generator=generator).to(DEVICE)
    for rows in (1, batch):
        cos, sin = (torch.randn(rows, tokens, width, generator=generator).to(DEVICE) for _ in range(2))
        wanted = x * cos[:, None] + rotate_half(x) * sin[:, None]
        found = turned(x, cos, sin)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(out, x, given)[0] for out in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    gate, up = (torch.randn(3, 341, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    outs = gated(gate, up), torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), (gate, up)) for out in outs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_blocks_that_multiply_other_things_and_rotations_of_pairs_stay(stand_ins, monkeypatch):
    model = pico_model("llama", torch.float32)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    module = sys.modules[type(model).__module__]

    def pairs(q, k, cos, sin, unsqueeze_dim=1):
        return tuple(x * cos[:, None] + x.roll(1, -1) * sin[:, None] for x in (q, k))

    monkeypatch.setattr(module, "apply_rotary_pos_emb", pairs)
    assert len(fused.fuse_layers(model)) == 0


def test_what_a_kernel_does_not_know_goes_the_plain_way(stand_ins):
    asked = []

    def plain(*given, **more):
        asked.append(given)
        return given[0], given[1]

    q, k, table = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 3, 8), torch.ones(1, 3, 8)
    fused._rotate(plain, q, k, table, table)
    assert not asked
    fused._rotate(plain, q, k, table, table, 1)
    fused._rotate(plain, q, k, table, table, unsqueeze_dim=2)
    fused._rotate(plain, q, k, table[:, :, :4], table[:, :, :4])
    fused._rotate(plain, q, k, table.double(), table.double())
    fused._rotate(plain, q, k, table.expand(3, 3, 8), table.expand(3, 3, 8))
    assert len(asked) == 5


QUERIES, KEYS, TABLE = (2, 4, 3, 8), (2, 2, 3, 8), (1, 3, 8)


@pytest.mark.parametrize(
    "shapes",
    [
        (QUERIES, (2, 3, 8), TABLE, TABLE),  # keys of one head that go without its dimension
        ((2, 2, 4, 3, 8), (2, 2, 2, 3, 8), TABLE, TABLE),
        (QUERIES, (2, 2, 5, 8), TABLE, TABLE),
        (QUERIES, (2, 2, 3, 4), TABLE, TABLE),
        (QUERIES, (1, 2, 3, 8), TABLE, TABLE),
        (QUERIES, KEYS, TABLE, (2, 3, 8)),
        (QUERIES, KEYS, (2, 3, 8), TABLE),
    ],
)
def test_keys_and_tables_of_other_shapes_go_the_plain_way(shapes, stand_ins):
    given = [torch.ones(1).expand(shape) for shape in shapes[:2]] + [torch.ones(shape) for shape in shapes[2:]]
    assert fused._rotate(lambda *_: "plain", *given) == "plain"
    assert stand_ins["turned"] == 0


@pytest.mark.parametrize("elsewhere", [1, 2, 3])
def test_keys_and_tables_on_another_device_or_in_another_precision_go_the_plain_way(elsewhere, stand_ins):
    given = [torch.ones(QUERIES), torch.ones(KEYS), torch.ones(TABLE), torch.ones(TABLE)]
    for moved in (given[elsewhere].to("meta"), given[elsewhere].double()):
        odd = [moved if place == elsewhere else tensor for place, tensor in enumerate(given)]
        assert fused._rotate(lambda *_: "plain", *odd) == "plain"
    assert stand_ins["turned"] == 0


def test_in_float64_and_without_kernels_nothing_changes(stand_ins, monkeypatch):
    assert len(fused.fuse_layers(pico_model("llama", torch.float64))) == 0
    monkeypatch.setattr(fused, "kernels_run", lambda _: False)
    assert len(fused.fuse_layers(pico_model("llama", torch.float32))) == 0


class Packed(torch.nn.Linear):
    """A linear module as quantizers make them: its weight's shape and dtype are not those of the matrix."""

    def __init__(self, whole):
        super().__init__(whole.in_features, whole.out_features, bias=False)
        self.register_buffer("whole", whole.weight.detach().clone())
        self.weight = torch.nn.Parameter(torch.zeros(whole.weight.numel() // 2, 1, dtype=torch.uint8), False)

    def forward(self, x):
        return x @ self.whole.T


def test_quantized_blocks_qualify_and_modules_with_a_forward_of_their_own_stay(stand_ins):
    model = pico_model("llama", torch.float32)
    first, second = (layer.mlp for layer in model.model.layers)
    for block in (first, second):
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(block, name, Packed(getattr(block, name)))
    moved = second.forward
    second.forward = lambda hidden: moved(hidden)
    overrides = fused.fuse_layers(model)
    assert len(overrides) == 3
    assert "forward" in vars(first)
    hidden = torch.linspace(-1, 1, 64).view(1, 2, 32)
    torch.testing.assert_close(first(hidden), type(first).forward(first, hidden), rtol=1e-5, atol=1e-6)
    overrides.remove()
    assert "forward" not in vars(first)
    assert "forward" in vars(second)


def a_block(kind=None, dtype=torch.float32, act_fn=None):
    """A made-up gated block."""
    block = (kind or GatedMLP)()
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(block, name, torch.nn.Linear(8, 8, bias=False, dtype=dtype))
    block.act_fn = act_fn or torch.nn.SiLU()
    return block.eval()


class GatedMLP(torch.nn.Module):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DroppingMLP(GatedMLP):
    rate = 0.5

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), self.rate, self.training)


class NoisyMLP(GatedMLP):
    def forward(self, x):
        whole = super().forward(x)
        return whole + torch.randn_like(whole) if self.training else whole


class RegularisedMLP(GatedMLP):
    def __init__(self):
        super().__init__()
        self.regularise = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.regularise(super().forward(x))


class IndirectMLP(GatedMLP):
    def forward(self, x):
        return self.finish(super().forward(x))

    def finish(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("kind", [DroppingMLP, NoisyMLP, RegularisedMLP, IndirectMLP])
def test_blocks_that_do_something_else_in_training_stay(kind, stand_ins):
    assert len(fused.fuse_layers(a_block())) == 1
    assert len(fused.fuse_layers(a_block(kind))) == 0


def test_seed_oss_keeps_its_dropout(stand_ins):
    seed_oss = pytest.importorskip("transformers.models.seed_oss")
    config = seed_oss.SeedOssConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, residual_dropout=0.5, attention_dropout=0.0,
    )  # fmt: skip
    model = seed_oss.SeedOssForCausalLM(config).eval()
    fused.fuse_layers(model)
    block = model.model.layers[0].mlp
    assert "forward" not in vars(block)
    assert "forward" in vars(model.model.layers[0].self_attn)


@pytest.mark.parametrize("act_fn", [torch.nn.GELU(), torch.nn.functional.gelu, lambda x: x])
def test_every_block_of_a_class_is_judged_by_itself(act_fn, stand_ins):
    def silu(x):
        return torch.nn.functional.silu(x)

    for like in (None, silu, lambda x: silu(x)):
        first, second = a_block(act_fn=like), a_block(act_fn=act_fn)
        assert len(fused.fuse_layers(torch.nn.ModuleList([first, second]))) == 1
        assert "forward" in vars(first)
        assert "forward" not in vars(second)


class ScaledMLP(GatedMLP):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return super().forward(x) * self.scale


def test_of_blocks_that_are_alike_one_is_tried_out(stand_ins):
    experts = torch.nn.ModuleList([a_block() for _ in range(64)])
    assert len(fused.fuse_layers(experts)) == 64
    assert stand_ins["gated"] == 1
    others = torch.nn.ModuleList([a_block(act_fn=torch.nn.GELU()) for _ in range(64)])
    assert len(fused.fuse_layers(others)) == 0
    assert stand_ins["gated"] == 2


def hooked(block):
    block.act_fn.register_forward_hook(lambda _module, _args, out: out + 1)
    return block


def with_forward(block):
    block.act_fn.forward = lambda x: x
    return block


def weighed(block):
    block.act_fn.register_parameter("weight", torch.nn.Parameter(torch.ones(1)))
    return block


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: hooked(a_block()), True),
        (lambda: with_forward(a_block()), True),
        (lambda: weighed(a_block()), False),
        (lambda: a_block(lambda: ScaledMLP(2.0)), True),
        (lambda: a_block(lambda: ScaledMLP(torch.nn.Parameter(torch.tensor(2.0)))), True),
        (lambda: a_block(dtype=torch.bfloat16), False),
        (lambda: a_block(act_fn=torch.nn.SiLU(inplace=True)), False),
    ],
)
def test_a_block_that_is_unlike_those_before_is_tried_out(make, own, stand_ins):
    alike = [a_block(), a_block(lambda: ScaledMLP(1.0)), a_block(lambda: ScaledMLP(torch.nn.Parameter(torch.ones(()))))]
    odd, before = make(), fused.fuse_layers(torch.nn.ModuleList(alike))
    assert len(before) == 3
    before.remove()
    stand_ins["gated"] = 0
    fused.fuse_layers(torch.nn.ModuleList([*alike, odd]))
    assert ("forward" in vars(odd)) is not own
    assert stand_ins["gated"] == 4


def test_weights_that_show_nothing_say_nothing_of_others(stand_ins):
    empty, other, gated = a_block(act_fn=torch.nn.GELU()), a_block(act_fn=torch.nn.GELU()), a_block()
    nothing = a_block()
    for block in (empty, nothing):
        torch.nn.init.zeros_(block.down_proj.weight)
    fused.fuse_layers(torch.nn.ModuleList([empty, other, nothing, gated]))
    assert ["forward" in vars(block) for block in (empty, other, nothing, gated)] == [False, False, False, True]


@pytest.mark.parametrize(("dtype", "fits"), [(torch.bfloat16, 1), (torch.float32, 1), (torch.float64, 0)])
def test_a_block_is_tried_out_in_its_own_precision(dtype, fits, stand_ins):
    for embedding in (torch.float32, torch.bfloat16):
        model = torch.nn.ModuleList([torch.nn.Embedding(4, 8, dtype=embedding), a_block(dtype=dtype)])
        assert len(fused.fuse_layers(model)) == fits


def test_a_block_that_takes_or_gives_other_things_stays(stand_ins):
    class RoutedMLP(GatedMLP):
        def forward(self, x, router):
            return super().forward(x) * router

    class WideMLP(GatedMLP):
        def forward(self, x):
            return super().forward(x).double()

    class PairMLP(GatedMLP):
        def forward(self, x):
            return super().forward(x), None

    for kind in (RoutedMLP, WideMLP, PairMLP):
        assert len(fused.fuse_layers(a_block(kind))) == 0


def test_adapters_beside_fused_layers_still_count(stand_ins):
    model = pico_model("llama", torch.float32).requires_grad_(False)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en", modules=("q_proj", "k_proj", "gate_proj", "down_proj"))])
    with Injection(model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev")
        half = torch.arange(bank.kept.numel()) % 2 == 0
        plain = probe.candidate_losses([bank.kept, half])
        injection.keep(fused.fuse_layers(model))
        torch.testing.assert_close(probe.candidate_losses([bank.kept, half]), plain, rtol=1e-5, atol=1e-5)
    assert stand_ins["gated"] > 0
