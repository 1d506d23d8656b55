"""A commented configuration to start from, generated from the sections themselves: their descriptions and defaults.

A line that begins with `# ` is a setting at its default; without these two characters it is in force and says the same.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .files import build_config, parse_yaml
from .sections import Config

FILL = "FILL"
_COLUMN = 44


def template(to_fill: Mapping[str, Any], chosen: Mapping[str, Any], head: str = "") -> str:
    """Return YAML in which the settings of `to_fill` and `chosen` (nested) are in force and all others are comments.

    Those of `to_fill` are marked `FILL`. `head` is prose for the top.
    """
    lines = [f"## {line}".rstrip() for line in head.splitlines()]
    # What a line says in comments is what holds without it, under the recipe that is chosen.
    defaults = build_config({"recipe": chosen["recipe"]} if "recipe" in chosen else {})
    for name, field in Config.model_fields.items():
        given = to_fill.get(name), chosen.get(name)
        lines += ["", *_setting(name, field, getattr(defaults, name), given, 0)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _setting(name: str, field: FieldInfo, default: Any, given: tuple[Any, Any], depth: int) -> Iterator[str]:
    """Yield the lines of one setting or section; `given` are its values to fill in and chosen, if any."""
    to_fill, chosen = given
    if isinstance(default, BaseModel):
        yield _line(f"{'  ' * depth}{name}:", (type(default).__doc__ or "").partition("\n")[0])
        for key, inner in type(default).model_fields.items():
            parts = ((to_fill or {}).get(key), (chosen or {}).get(key))
            yield from _setting(key, inner, getattr(default, key), parts, depth + 1)
        return
    value = next((value for value in (to_fill, chosen) if value is not None), None)
    in_force = value is not None
    remark = "; ".join(part for part in (FILL if to_fill is not None else "", _remark(field)) if part)
    yield _line(f"{'' if in_force else '# '}{'  ' * depth}{name}: {_inline(value if in_force else default)}", remark)


def _line(setting: str, remark: str) -> str:
    return f"{setting.ljust(_COLUMN)} # {remark}".rstrip() if remark else setting


def _remark(field: FieldInfo) -> str:
    choices = ", ".join(_choices(field.annotation))
    several = "any of" if isinstance(field.get_default(), tuple) or "tuple" in str(field.annotation) else "one of"
    return "; ".join(part for part in (field.description, f"{several} {choices}" if choices else "") if part)


def _choices(annotation: Any) -> list[str]:
    """Return the values of a `Literal` anywhere in a type."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return [choice for part in get_args(annotation) for choice in _choices(part)]
    return []


def _inline(value: Any) -> str:
    """Return a value on one line of YAML 1.2."""
    if isinstance(value, str):
        plain = value.isprintable() and ": " not in value and " #" not in value and parse_yaml(f"{value}", "") == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_inline(item) for item in value)}]"
    return json.dumps(value)
