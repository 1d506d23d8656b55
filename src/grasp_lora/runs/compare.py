"""Which settings differ between the configuration of a run and the one it is resumed with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import parse_yaml


def config_differences(
    old: str, new: str, ignore: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Return one line per setting that differs between two YAML texts and is not at or below `ignore`.

    A setting that the old text does not name and that stands at its default (`defaults`, by dotted name) does not
    differ: the version that wrote the text did not know it yet.
    """
    if old == new:
        return []
    before, after = flatten(parse_yaml(old, "saved config.yaml")), flatten(parse_yaml(new, "configuration"))
    absent, known = object(), defaults or {}
    return [
        f"{name}: {_show(before, name)} in the run, {_show(after, name)} now"
        for name in [*before, *(name for name in after if name not in before)]
        if not _same(before.get(name, known.get(name, absent)), after.get(name, absent))
        and not any(name == skip or name.startswith(f"{skip}.") for skip in ignore)
    ]


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    if not isinstance(tree, Mapping) or (not tree and prefix):
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _show(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name], ensure_ascii=False, default=str) if name in flat else "(not set)"
