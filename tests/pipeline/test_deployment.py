from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.pico import pico_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from grasp_lora.errors import AdapterError, ModelError
from grasp_lora.pipeline import deployment
from grasp_lora.pipeline.deployment import Deployment, measure_deployment

PROMPTS = [[1, 70, 71], [1, 80]]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 259,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, eos_token_id=2, bos_token_id=1))
    model.save_pretrained(root / "base")
    pico_tokenizer().save_pretrained(root / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for an attribute that transformers renamed
        peft.get_peft_model(model, settings).save_pretrained(root / "adapter")
    return root / "base", root / "adapter"


def measure(base: Path, adapter: Path, **changes: Any) -> Deployment:
    settings = {"device": "cpu", "dtype": torch.float32, "max_new_tokens": 4, "repeats": 2}
    prompts = changes.pop("prompts", PROMPTS)
    return measure_deployment(base, adapter, prompts, pico_tokenizer(), **{**settings, **changes})


def test_figures_of_a_served_adapter(folders: tuple[Path, Path]) -> None:
    found = measure(*folders)
    assert found.load_seconds > 0.0
    assert found.first_token_seconds > 0.0
    assert found.tokens_per_second > 0.0
    assert (found.prompts, found.repeats, found.new_tokens) == (2, 2, 4)
    assert found.dtype == "float32"
    assert "cpu" in found.hardware
    assert found.energy_joules_per_token is None
    assert "NVIDIA GPUs only" in str(found.energy_reason)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the process peak starts again only on Linux")
def test_peak_memory_of_the_process(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20
    real = deployment._load

    def load(*arguments: Any) -> Any:
        held = torch.ones(size, dtype=torch.uint8)
        return real(*arguments), held

    monkeypatch.setattr(deployment, "_load", lambda *arguments: load(*arguments)[0])
    found = measure(*folders)
    assert found.peak_memory_kind == "process rss"
    assert found.added_memory_bytes is not None
    assert found.added_memory_bytes > 0.9 * size


def test_the_adapter_is_served_through_peft(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    real = deployment._measure_speed

    def spy(model: Any, *rest: Any) -> Any:
        served.append(model)
        return real(model, *rest)

    monkeypatch.setattr(deployment, "_measure_speed", spy)
    measure(*folders, dtype=torch.bfloat16)
    assert isinstance(served[0], peft.PeftModel)
    assert next(served[0].parameters()).dtype == torch.bfloat16


def test_end_tokens_do_not_cut_the_measurement_short(folders: tuple[Path, Path]) -> None:
    calls: list[tuple[int, int]] = []
    model = deployment._load(str(folders[0]), folders[1], torch.device("cpu"), torch.float32)
    generate = model.generate

    def count(**settings: Any) -> Any:
        out = generate(**settings)
        calls.append((settings["input_ids"].shape[1], out.shape[1]))
        return out

    model.generate = count
    with torch.no_grad():  # every token is an end token
        model.get_base_model().lm_head.weight.zero_()
    model.generation_config.eos_token_id = [0]
    assert deployment._generate(model, [1, 70], 5) > 0.0
    assert calls == [(2, 7)]
    assert model.generation_config.eos_token_id == [0]


def test_what_cannot_be_loaded(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    with pytest.raises(ModelError, match="cannot load the base model"):
        measure(tmp_path / "nothing", adapter)
    with pytest.raises(AdapterError, match="'nothing'"):
        measure(base, tmp_path / "nothing")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(AdapterError, match="'broken'"):
        measure(base, broken)


@pytest.mark.parametrize(
    "changes",
    [{"prompts": []}, {"prompts": [[]]}, {"repeats": 0}, {"max_new_tokens": 0}, {"prompts": [[1, 300]]}],
)
def test_wrong_input(folders: tuple[Path, Path], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="token"):
        measure(*folders, **changes)


def test_energy_needs_the_extra_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment.importlib.util, "find_spec", lambda _name: None)
    meter = deployment._EnergyMeter(torch.device("cuda"))
    joules, reason = meter.joules_per(1)
    assert joules is None
    assert "grasp-lora[energy]" in str(reason)


class FakeNvml:
    """A GPU whose counter, in millijoules, moves on by 3000 with each reading; None: it has no counter."""

    class NVMLError(Exception):
        pass

    def __init__(self, counter: int | None) -> None:
        self.counter, self.open = counter, 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:
        if self.counter is None:
            raise self.NVMLError("Not Supported")
        self.counter += 3000
        return self.counter


@pytest.mark.parametrize(("counter", "expected"), [(5, 1.5), (None, None)])
def test_energy_per_token(monkeypatch: pytest.MonkeyPatch, counter: int | None, expected: float | None) -> None:
    fake = FakeNvml(counter)

    class Properties:
        uuid = "1234"

    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(deployment.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Properties())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    joules, reason = deployment._EnergyMeter(torch.device("cuda")).joules_per(2)
    assert joules == expected
    assert (reason is None) == (expected is not None)
    assert fake.open == 0
