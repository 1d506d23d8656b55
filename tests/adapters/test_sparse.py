from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from grasp_lora.adapters.sparse import load_sparse, save_sparse
from grasp_lora.errors import AdapterError, RunError

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


Named = dict[str, Tensor]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BITS[tensor.dtype])


def example() -> tuple[Named, Named]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"m.0.A": (2, 5), "m.0.B": (3, 2), "m.1.A": (2, 5), "m.1.B": (3, 2)}
    masks = {name: torch.rand(shape, generator=generator) < 0.6 for name, shape in shapes.items()}
    tensors = {name: torch.randn(shape, generator=generator) * masks[name] for name, shape in shapes.items()}
    return tensors, masks


def merge_of(rule: str) -> dict[str, Any]:
    constants = {"m.0.A": 2.0, "m.0.B": 2.0, "m.1.A": 0.1, "m.1.B": 0.1}
    return {
        "adapters": ["en", "ar"],
        "rule": rule,
        "signs": [1.0, -1.0],
        "strength": 0.7,
        "constants": constants,
    }


@st.composite
def contents(draw: st.DrawFn) -> tuple[Named, Named]:
    """Any bit patterns, infinities, NaN and both zeros included; kept entries may well be zero."""
    tensors, masks = {}, {}
    for name in draw(st.lists(st.text("abc.", min_size=1, max_size=5), max_size=3, unique=True)):
        dtype = draw(st.sampled_from(list(BITS)))
        shape = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
        size = int(torch.tensor(shape).prod())
        width = torch.iinfo(BITS[dtype])
        patterns = st.one_of(st.sampled_from([0, width.min]), st.integers(width.min, width.max))
        raw = torch.tensor(draw(st.lists(patterns, min_size=size, max_size=size)), dtype=BITS[dtype])
        kept = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
        tensors[name] = torch.where(kept, raw, 0).view(dtype).reshape(shape)
        masks[name] = kept.reshape(shape)
    return tensors, masks


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(contents(), st.dictionaries(st.text(), json_values, max_size=4))
def test_restored_bit_for_bit(content: tuple[dict[str, Tensor], dict[str, Tensor]], metadata: dict[str, Any]) -> None:
    tensors, masks = content
    with TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.sparse.safetensors"
        written = save_sparse(path, tensors, masks, metadata)
        assert path.stat().st_size == written
        restored = load_sparse(path)
    assert restored.metadata == metadata
    assert set(restored.tensors) == set(restored.masks) == set(tensors)
    for name, tensor in tensors.items():
        assert restored.tensors[name].dtype == tensor.dtype
        assert restored.tensors[name].shape == tensor.shape
        assert torch.equal(bits(restored.tensors[name]), bits(tensor))
        assert torch.equal(restored.masks[name], masks[name])


def test_a_single_signalling_nan_keeps_its_bits(tmp_path: Path) -> None:
    raw = torch.tensor([0x7FA00001, 0], dtype=torch.int32)
    mask = torch.tensor([True, False])
    save_sparse(tmp_path / "x", {"w": raw.view(torch.float32)}, {"w": mask}, {})
    assert torch.equal(bits(load_sparse(tmp_path / "x").tensors["w"]), raw)


def test_format_is_as_documented(tmp_path: Path) -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, False, True]])
    tensor = torch.tensor([[1.5, 0, -0.0], [0, 0, 0], [0, 0, -2.0]])
    save_sparse(tmp_path / "x", {"w": tensor}, {"w": mask}, {"rule": "sum_deltas"})
    stored = load_file(tmp_path / "x")
    assert sorted(stored) == ["w.bitmap", "w.values"]
    assert stored["w.bitmap"].tolist() == [0b10100000, 0b10000000]
    assert torch.equal(bits(stored["w.values"]), bits(torch.tensor([1.5, -0.0, -2.0])))
    with safe_open(tmp_path / "x", framework="pt") as opened:
        header = opened.metadata()
    assert list(header) == ["grasp_lora_sparse"]
    layout = {"w": {"shape": [3, 3], "dtype": "float32"}}
    wanted = {"version": 1, "tensors": layout, "metadata": {"rule": "sum_deltas"}}
    assert json.loads(header["grasp_lora_sparse"]) == wanted


def test_size_is_values_and_an_eighth_of_a_byte_per_entry(tmp_path: Path) -> None:
    mask = torch.arange(8000) % 5 == 0
    empty = save_sparse(tmp_path / "a", {"w": torch.zeros(8000)}, {"w": torch.zeros(8000, dtype=torch.bool)}, {})
    full = save_sparse(tmp_path / "b", {"w": mask.float()}, {"w": mask}, {})
    assert empty < 1000 + 500
    assert abs(full - empty - 4 * 1600) <= 16


def test_same_input_same_bytes(tmp_path: Path) -> None:
    tensors, masks = example()
    save_sparse(tmp_path / "a", tensors, masks, {"x": 1, "y": 2})
    save_sparse(tmp_path / "b", dict(reversed(tensors.items())), masks, {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_merged_factors_by_formula(tmp_path: Path) -> None:
    tensors, masks = example()
    a0, b0, a1, b1 = (tensors[name] for name in ("m.0.A", "m.0.B", "m.1.A", "m.1.B"))
    wanted = {
        "sum_factors": 0.7 * (2.0 * b0 + 0.1 * b1) @ (2.0 * a0 - 0.1 * a1),
        "sum_deltas": 0.7 * (4.0 * b0 @ a0 - 0.01 * b1 @ a1),
    }
    for rule, delta in wanted.items():
        save_sparse(tmp_path / rule, tensors, masks, merge_of(rule))
        a, b = load_sparse(tmp_path / rule).to_factors()["m"]
        torch.testing.assert_close(b @ a, delta)


def test_merging_needs_its_metadata_and_names(tmp_path: Path) -> None:
    tensors, masks = example()
    for number, lacking in enumerate(({}, {**merge_of("sum_deltas"), "signs": [1.0]}, merge_of("unheard"))):
        save_sparse(tmp_path / str(number), tensors, masks, lacking)
        with pytest.raises(AdapterError, match="cannot be merged"):
            load_sparse(tmp_path / str(number)).to_factors()
    save_sparse(tmp_path / "w", {"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.bool)}, merge_of("sum_deltas"))
    with pytest.raises(AdapterError, match="'w' is not <module>"):
        load_sparse(tmp_path / "w").to_factors()


def test_input_that_could_not_be_restored(tmp_path: Path) -> None:
    tensors, masks = example()
    none = torch.zeros(2, 5, dtype=torch.bool)
    for changed, message in (
        ({**masks, "m.0.A": none}, "entries outside the mask are not zero"),
        ({**masks, "m.0.A": none.T}, "must be boolean of shape"),
        ({**masks, "m.0.A": none.float()}, "must be boolean"),
        ({**masks, "extra": none}, "'extra' has a tensor or a mask"),
    ):
        with pytest.raises(AdapterError, match=message):
            save_sparse(tmp_path / "x", tensors, changed, {})
    whole = torch.ones(2, dtype=torch.bool)
    with pytest.raises(AdapterError, match=r"torch\.int64"):
        save_sparse(tmp_path / "x", {"w": torch.ones(2, dtype=torch.int64)}, {"w": whole}, {})
    for bad in ({"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(AdapterError, match="plain JSON"):
            save_sparse(tmp_path / "x", tensors, masks, bad)
    assert not (tmp_path / "x").exists()


def test_existing_file_and_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, masks = example()
    save_sparse(tmp_path / "x", tensors, masks, {})
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(RunError, match="not overwritten"):
        save_sparse(tmp_path / "x", tensors, masks, {"n": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="no space left"):
            save_sparse(tmp_path / "x", tensors, masks, {"n": 1}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == before
    save_sparse(tmp_path / "x", tensors, masks, {"n": 1}, overwrite=True)
    assert load_sparse(tmp_path / "x").metadata == {"n": 1}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    save_sparse(tmp_path / "x", *example(), {})
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[: int(share * len(content))])
    with pytest.raises(AdapterError, match="truncated or damaged"):
        load_sparse(tmp_path / "x")


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        load_sparse(tmp_path / "none")
    save_file({"w": torch.ones(2)}, tmp_path / "plain")
    with pytest.raises(AdapterError, match="is no sparse adapter of version 1"):
        load_sparse(tmp_path / "plain")
    save_file({"w": torch.ones(2)}, tmp_path / "newer", metadata={"grasp_lora_sparse": '{"version": 2}'})
    with pytest.raises(AdapterError, match="found: 2"):
        load_sparse(tmp_path / "newer")
    save_file({"w": torch.ones(2)}, tmp_path / "broken", metadata={"grasp_lora_sparse": "{"})
    with pytest.raises(AdapterError, match="truncated or damaged"):
        load_sparse(tmp_path / "broken")


@pytest.mark.parametrize(
    "changes",
    [
        {"m.0.A.values": torch.ones(1)},
        {"m.0.A.values": torch.ones(6, dtype=torch.float64)},
        {"m.0.A.bitmap": torch.zeros(3, dtype=torch.uint8)},
        {"stray": torch.ones(1)},
        {"m.0.A.bitmap": None},
    ],
)
def test_parts_that_do_not_fit_together(changes: dict[str, Tensor | None], tmp_path: Path) -> None:
    save_sparse(tmp_path / "x", *example(), {})
    with safe_open(tmp_path / "x", framework="pt") as opened:
        header = opened.metadata()
    changed = {**load_file(tmp_path / "x"), **changes}
    save_file(
        {key: tensor for key, tensor in changed.items() if tensor is not None},
        tmp_path / "y",
        metadata=header,
    )
    with pytest.raises(AdapterError, match="truncated or damaged"):
        load_sparse(tmp_path / "y")
