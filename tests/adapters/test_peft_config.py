from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import peft_pico as pico
import pytest

from grasp_lora.adapters.discover import Targets
from grasp_lora.adapters.peft_config import USED, WITHOUT_EFFECT, defaults, parse_config, read_config
from grasp_lora.errors import AdapterError

GOOD: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 4}

REFUSED: dict[str, Any] = {
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "lora_bias": True,
    "bias": "all",
    "layer_replication": [[0, 2], [1, 3]],
    "alora_invocation_tokens": [5],
    "use_qalora": True,
    "megatron_config": {"tensor_model_parallel_size": 2},
    "loftq_config": {"loftq_bits": 4},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"direction": "ArBr"},
    "velora_config": {"num_groups": 2},
    "monteclora_config": {"num_samples": 8},
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1.0},
    "ensure_weight_tying": True,
    "task_type": "SEQ_CLS",
    "peft_type": "ADALORA",
    "a_field_of_the_future": "on",
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_plain_lora_is_refused_by_name(field: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_config({**GOOD, field: REFUSED[field]}, "mine")
    assert f"'mine': {field} = {json.dumps(REFUSED[field])[:70]}" in str(caught.value)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "unknown", None, 1])
def test_initializations_that_may_change_the_base_are_refused(init: Any) -> None:
    with pytest.raises(AdapterError, match="init_lora_weights"):
        parse_config({**GOOD, "init_lora_weights": init}, "mine")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_initializations_that_leave_the_base_alone(init: Any) -> None:
    assert parse_config({**GOOD, "init_lora_weights": init}, "mine").r == 4


def test_every_field_of_the_installed_peft_is_used_known_as_harmless_or_refused() -> None:
    """A field that a later PEFT brings is refused when it is on: nothing passes unread."""
    for field in set(defaults()).difference(USED, WITHOUT_EFFECT):
        with pytest.raises(AdapterError, match=field):
            parse_config({**GOOD, field: {"switched": "on"}}, "mine")


def test_fields_known_here_exist_in_the_installed_peft() -> None:
    assert set(USED) | set(WITHOUT_EFFECT) <= set(defaults())


def test_defaults_of_peft_are_all_accepted() -> None:
    fields = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    fields["target_modules"] = sorted(fields["target_modules"])
    config = parse_config(fields, "mine")
    assert (config.r, config.alpha, config.use_rslora) == (8, 8.0, False)
    assert config.targets == Targets(("q_proj",))


@pytest.mark.parametrize("off", [None, False, "", [], {}])
def test_unknown_fields_that_are_off_are_accepted(off: Any) -> None:
    assert parse_config({**GOOD, "a_field_of_the_future": off}, "mine").r == 4


def test_variants_that_peft_itself_saves_are_refused(tmp_path: Path) -> None:
    for field, settings in {
        "use_dora": {"use_dora": True},
        "bias": {"bias": "lora_only"},
        "lora_bias": {"lora_bias": True},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "trainable_token_indices": {"trainable_token_indices": [3]},
        "init_lora_weights": {"init_lora_weights": "olora"},
    }.items():
        folder = pico.plain(tmp_path / field, **settings)
        with pytest.raises(AdapterError, match=f": {field} = "):
            read_config(folder, "mine")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("r", 2.5),
        ("lora_alpha", 0),
        ("lora_alpha", -4),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("use_rslora", "yes"),
        ("fan_in_fan_out", 1),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"q_proj(": 4}),
        ("target_modules", 3),
        ("target_modules", ["q_proj", 3]),
        ("layers_to_transform", ["0"]),
        ("layers_to_transform", True),
        ("base_model_name_or_path", 7),
    ],
)
def test_fields_of_the_wrong_kind(field: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=f"'mine': {field}"):
        parse_config({**GOOD, field: value}, "mine")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"null"])
def test_broken_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"'mine': adapter_config\.json"):
        read_config(tmp_path, "mine")


def test_scaling_of_patterns() -> None:
    fields = {**GOOD, "lora_alpha": 8, "rank_pattern": {"k": 16, r"a\..*": 2}, "alpha_pattern": {"^a.k": 12}}
    config = parse_config(fields, "mine")
    assert [config.rank(name) for name in ("a.k", "b.k", "a.q", "bk")] == [16, 16, 2, 4]
    assert [config.scaling(name) for name in ("a.k", "b.k", "a.q", "bk")] == [12 / 16, 0.5, 4.0, 2.0]
    rs = parse_config({**fields, "use_rslora": True}, "mine")
    assert [rs.scaling(name) for name in ("a.k", "b.k", "bk")] == [3.0, 2.0, 4.0]
