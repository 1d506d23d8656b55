"""`adapter_config.json` of a PEFT LoRA adapter: read, and refused by name where it is more than plain LoRA.

A LoRA configuration has dozens of fields, and reading only A and B drops most of them without a word. So only
fields on an allow-list may differ from their defaults, which come from the installed `peft.LoraConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft.utils.other import get_pattern_key

from ..errors import AdapterError
from .discover import Targets

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

USED = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "peft_type", "task_type", "bias", "init_lora_weights"),
)
# Of no effect on s B A x: settings of the training, bookkeeping, companions of fields that are refused.
WITHOUT_EFFECT = (
    *("lora_dropout", "inference_mode", "auto_mapping", "peft_version", "runtime_config"),
    *("megatron_core", "qalora_group_size", "eva_config"),
)
# These leave W alone. The others subtract from it, so that A and B on the original W are another model.
HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
REASONS = {
    "use_dora": "DoRA rescales the weight, its update is not B A",
    "modules_to_save": "it replaces whole modules of the base model",
    "trainable_token_indices": "it changes rows of the embedding",
    "target_parameters": "it adapts bare parameters, not linear modules",
    "lora_bias": "it adds a bias to the update",
    "layer_replication": "it changes the layers of the base model",
    "alora_invocation_tokens": "an activated LoRA is switched on by tokens of the prompt",
    "use_qalora": "QALoRA pools the input of A",
    "megatron_config": "it needs Megatron's parallel layers",
    "loftq_config": "LoftQ changes the base weights",
    "corda_config": "CorDA changes the base weights",
    "lora_ga_config": "LoRA-GA changes the base weights",
    "velora_config": "VeLoRA is a variant that is not handled",
    "monteclora_config": "its update is random",
    "use_bdlora": "block-diagonal factors are not handled",
    "arrow_config": "routing between adapters is not handled",
    "kasa_config": "KaSA changes the base weights and puts singular values between B and A",
    "ensure_weight_tying": "it ties the adapters of embedding and head",
}


@dataclass(frozen=True)
class AdapterConfig:
    """Ranks and scalings of a plain LoRA adapter, and the modules it is meant for (None: not said).

    `fan_in_fan_out` says how the base weight is stored and has no effect on A and B.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    targets: Targets | None
    base_model_name_or_path: str | None
    revision: str | None
    fan_in_fan_out: bool

    def rank(self, module: str) -> int:
        """Return r of `module` (full name), by PEFT's matching of `rank_pattern`."""
        return self.rank_pattern.get(get_pattern_key(tuple(self.rank_pattern), module), self.r)

    def scaling(self, module: str) -> float:
        """Return `s = alpha / r`, or `alpha / sqrt(r)` for rsLoRA, of `module`, patterns included."""
        alpha = self.alpha_pattern.get(get_pattern_key(tuple(self.alpha_pattern), module), self.alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def locate_adapter(source: str | Path) -> tuple[Path, str]:
    """Return the adapter's folder and its origin: the folder's name, or the hub id it was fetched by.

    From the hub only the configuration and the safetensors file are fetched. Raises `AdapterError` when
    neither a folder nor a hub repository is to be had.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder, folder.resolve().name
    if folder.exists():
        raise AdapterError(f"adapter '{source}' is a file. Give the folder that holds {CONFIG_FILE}.")
    if not (isinstance(source, str) and HUB_ID.fullmatch(source)):
        raise AdapterError(
            f"adapter folder '{source}' does not exist. Give a folder that PEFT has written, or a hub id."
        )
    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])), source
    except (OSError, HfHubHTTPError, HFValidationError) as problem:
        raise AdapterError(
            f"adapter '{source}' is no folder here and could not be fetched from the hub "
            f"({type(problem).__name__}). Check the name, log in if the repository is private, or fetch it "
            "where there is a network and give the folder."
        ) from problem


def read_config(folder: Path, origin: str) -> AdapterConfig:
    """Read and check `adapter_config.json` in `folder`; `origin` names the adapter in messages.

    Raises `AdapterError` when the file is missing or broken, or when any field asks for what is not handled.
    """
    file, name = folder / CONFIG_FILE, f"adapter '{origin}': {CONFIG_FILE}"
    if not file.is_file():
        raise AdapterError(f"{name} is missing. Give a folder that PEFT's save_pretrained has written.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as broken:
        raise AdapterError(f"{name} cannot be read ({broken.strerror}). Check its permissions.") from broken
    except ValueError as broken:  # JSONDecodeError and UnicodeDecodeError
        raise AdapterError(f"{name} is not valid JSON ({broken}). Save the adapter again.") from broken
    if not isinstance(fields, dict):
        raise AdapterError(f"{name} must hold a JSON object, found {type(fields).__name__}. Save it again.")
    return parse_config(fields, origin)


def parse_config(fields: Mapping[str, Any], origin: str) -> AdapterConfig:
    """Check the fields of an `adapter_config.json` and return what is used of them. Raises `AdapterError`."""
    _refuse_variants(fields, origin)
    known, check = defaults(), _Check(origin)
    value = {key: fields.get(key, known[key]) for key in USED}
    return AdapterConfig(
        r=check.rank("r", value["r"]),
        alpha=check.alpha("lora_alpha", value["lora_alpha"]),
        rank_pattern=check.pattern("rank_pattern", value["rank_pattern"], check.rank),
        alpha_pattern=check.pattern("alpha_pattern", value["alpha_pattern"], check.alpha),
        use_rslora=check.flag("use_rslora", value["use_rslora"]),
        targets=check.targets(value),
        base_model_name_or_path=check.text("base_model_name_or_path", value["base_model_name_or_path"]),
        revision=check.text("revision", value["revision"]),
        fan_in_fan_out=check.flag("fan_in_fan_out", value["fan_in_fan_out"]),
    )


def defaults() -> dict[str, Any]:
    """Return the default of every field of the installed `peft.LoraConfig`."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(peft.LoraConfig):
        made = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        found[item.name] = None if made is dataclasses.MISSING else made
    return found


def _refuse_variants(fields: Mapping[str, Any], origin: str) -> None:
    """Raise for the first field that asks for more than plain LoRA on linear modules of a causal LM."""
    if fields.get("peft_type") != "LORA":
        _refuse(origin, "peft_type", fields.get("peft_type"), "only LORA adapters are handled")
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        _refuse(origin, "task_type", fields["task_type"], "only causal language models are handled")
    if fields.get("bias", "none") != "none":
        _refuse(origin, "bias", fields["bias"], "it changes biases of the base model")
    init = fields.get("init_lora_weights", True)
    if not any(init is known if isinstance(known, bool) else init == known for known in HARMLESS_INITS):
        reason = (
            "it changes the base weights; save the adapter again with PEFT's "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
        _refuse(origin, "init_lora_weights", init, reason)
    known = defaults()
    for key in sorted(set(fields).difference(USED, WITHOUT_EFFECT)):
        # A field that is unknown here is off when it is null, false or empty: PEFT's own convention.
        if (key in known and fields[key] == known[key]) or (not fields[key] and not known.get(key)):
            continue
        _refuse(origin, key, fields[key], REASONS.get(key, "this field is not known here"))


def _refuse(origin: str, field: str, value: object, reason: str) -> None:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise AdapterError(
        f"adapter '{origin}': {field} = {shown} is not supported: {reason}. "
        "Use an adapter trained as plain LoRA (its update is alpha/r B A)."
    )


@dataclass(frozen=True)
class _Check:
    """Typed reading of single fields; every failure is an `AdapterError` that names adapter and field."""

    origin: str

    def _fail(self, field: str, rule: str, value: object) -> AdapterError:
        found = f"{field} must be {rule}, found {value!r}"
        return AdapterError(f"adapter '{self.origin}': {found}. Mend {CONFIG_FILE}.")

    def rank(self, field: str, value: object) -> int:
        if type(value) is not int or value < 1:
            raise self._fail(field, "a whole number of at least 1", value)
        return value

    def alpha(self, field: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._fail(field, "a number above 0", value)
        return float(value)

    def flag(self, field: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._fail(field, "true or false", value)
        return value

    def text(self, field: str, value: object) -> str | None:
        if value is not None and not isinstance(value, str):
            raise self._fail(field, "a text or null", value)
        return value or None

    def pattern(self, field: str, value: object, check: Callable[[str, object], Any]) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._fail(field, "an object of module patterns", value)
        for key in value:
            try:
                re.compile(rf"(.*\.)?({key})$")
            except re.error as broken:
                raise self._fail(field, f"keyed by valid regular expressions ({broken})", key) from broken
        return {key: check(f"{field}[{key!r}]", entry) for key, entry in value.items()}

    def several(self, field: str, value: object, kind: type) -> Any:
        if value is None or type(value) is kind:
            return value
        if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
            raise self._fail(field, f"null, one {kind.__name__} or a list of them", value)
        return tuple(value)

    def targets(self, value: Mapping[str, Any]) -> Targets | None:
        modules = self.several("target_modules", value["target_modules"], str)
        exclude = self.several("exclude_modules", value["exclude_modules"], str)
        layers = self.several("layers_to_transform", value["layers_to_transform"], int)
        pattern = self.several("layers_pattern", value["layers_pattern"], str)
        return Targets(modules, exclude, layers, pattern) if modules else None
