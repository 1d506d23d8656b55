"""Which base model an adapter was trained on, against the one in use: by name, since shapes say nothing."""

from __future__ import annotations

from ..errors import AdapterError
from .peft_config import AdapterConfig

DEFAULT = "main"
"""The revision that the hub gives when none is asked for."""


def base_label(name_or_path: str) -> str:
    """Return the last part of a model's name or path in lower case (in the hub cache: the model's name)."""
    parts = [part for part in name_or_path.replace("\\", "/").split("/") if part]
    cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    return (cached or parts or [""])[-1].lower()


def check_base(
    config: AdapterConfig, origin: str, base_id: str | None, revision: str | None, allow_other_base: bool
) -> tuple[str, ...]:
    """Compare the adapter's own base with `base_id` (at `revision`) and return notices, or raise `AdapterError`."""
    trained = config.base_model_name_or_path
    if trained is None:
        return (f"adapter '{origin}' does not name its base model; only names and shapes were checked.",)
    if base_id is None:
        return (f"adapter '{origin}' was trained on {_shown(trained)}; the base in use has no name.",)
    if base_label(trained) == base_label(base_id):
        return _other_revision(config, origin, revision)
    if allow_other_base:
        return (f"adapter '{origin}' was trained on {_shown(trained)}, not {_shown(base_id)}: allowed.",)
    raise AdapterError(
        f"adapter '{origin}': base_model_name_or_path is {_shown(trained)}, but the base model in use is "
        f"{_shown(base_id)}. Use the adapter's own base; if it is the same model under another name, "
        "allow it with --set adapters.allow_other_base=true."
    )


def _other_revision(config: AdapterConfig, origin: str, revision: str | None) -> tuple[str, ...]:
    """Return a notice where the base's revisions have different names; they may still be of the same weights."""
    if (config.revision or DEFAULT) == (revision or DEFAULT):
        return ()
    trained, used = config.revision or DEFAULT, revision or DEFAULT
    words = f"on revision '{trained}' of its base, in use is '{used}'; their weights were not compared."
    return (f"adapter '{origin}' was trained {words}",)


def _shown(name: str) -> str:
    """A hub id as it is; of a path only the last part, since messages are recorded."""
    is_hub_id = name.count("/") <= 1 and "\\" not in name and not name.startswith(("/", ".", "~"))
    return f"'{name if is_hub_id else base_label(name)}'"
