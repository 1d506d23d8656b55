"""Configurations from YAML 1.2 and `section.key=value` pairs, and back.

A setting that is unknown, of the wrong type or out of range is a `ConfigError` that names the field, the rule, the
value and the next step. The resolved configuration can be printed and is saved with each run.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import ConfigError, nearest
from .base import Section
from .recipes import recipe_settings
from .sections import Config


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)  # pure: YAML 1.2, so `no` is a string and 1e-4 a number
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.add_representer(str, _represent_text)
    return yaml


def _represent_text(representer: Any, text: str) -> Any:
    """Quote text with U+0085, U+2028 or U+2029: written bare, they read back as line breaks."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML 1.2; raises `ConfigError` naming `origin` and the line when the text is not YAML."""
    try:
        return _yaml().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise ConfigError(f"{origin}{where}: not valid YAML ({problem}). Mend the file and try again.") from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist. Check the path given to --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read as UTF-8 text ({error}).") from None
    loaded = parse_yaml(text, str(path))
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got {type(loaded).__name__}.")
    return loaded


def _assign(tree: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes section.key=value, got '{item}'. Example: --set controller.p_max=0.9")
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {item}: '{parent}' is a value, not a section.")
        node = child
    node[leaf] = parse_yaml(value, f"--set {key.strip()}")


def _deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` in their places; a section that is empty in `over` changes nothing."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None and isinstance(old, Mapping):
            continue
        merged[key] = _deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the section that holds the key at `location`."""
    section: type[BaseModel] = Config
    for name in location[:-1]:
        if isinstance(name, int):  # a place in a list of sections, whose type is known already
            continue
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def _allowed(problem: Mapping[str, Any]) -> list[str]:
    """Return the values that a setting of few values takes, from pydantic's words for them."""
    return re.findall(r"'([^']+)'", problem["ctx"]["expected"])


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        name = ".".join(part for part in location if isinstance(part, str)) or "configuration"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(location)
            lines.append(
                f"unknown setting '{name}'.{nearest(str(location[-1]), known)} Known here: {', '.join(known)}."
            )
            continue
        rule = problem["msg"].removeprefix("Value error, ")
        value = problem.get("input")
        shown = f" (got {value!r})" if not isinstance(value, (dict, BaseModel)) else ""
        hint = nearest(str(value), _allowed(problem)) if problem["type"] == "literal_error" else ""
        lines.append(
            f"{name}: {rule}{shown}.{hint} Correct it in the file given to --config or with --set {name}=VALUE."
        )
    return "\n".join(dict.fromkeys(lines))


def build_config(tree: Mapping[str, Any]) -> Config:
    """Return a `Config` from nested mappings; raises `ConfigError` on the first unknown or bad settings."""
    defaults = Config().model_dump()
    try:
        # Section defaults that differ from their type's (train_source.epochs) must survive a partial section.
        return Config.model_validate(_deep_merge(_deep_merge(defaults, recipe_settings(tree)), tree))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Return `section.key=value` pairs as nested mappings; raises `ConfigError` for a pair that is none."""
    assigned: dict[str, Any] = {}
    for item in items:
        _assign(assigned, item)
    return assigned


def load_config(
    path: str | Path | None = None, overrides: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> Config:
    """Return the resolved configuration: `base`, then the YAML file, then `section.key=value` overrides.

    Relative paths in the file are taken from the working directory, as on the command line.
    """
    tree: dict[str, Any] = dict(base or {})
    if path is not None:
        tree = _deep_merge(tree, _read_mapping(Path(path)))
    return build_config(_deep_merge(tree, parse_overrides(overrides)))


def to_yaml(config: Section) -> str:
    """Return the configuration as YAML that `load_config` reads back unchanged."""
    stream = io.StringIO()
    _yaml().dump(json.loads(config.model_dump_json()), stream)
    return stream.getvalue()


def to_dict(config: Section) -> dict[str, Any]:
    """Return the configuration as plain JSON types."""
    return cast(dict[str, Any], json.loads(config.model_dump_json()))


def setting_names(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every setting as `section.key`, in the order of the sections."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names
