"""What the documentation site needs beyond its pages; a hook of mkdocs (mkdocs.yml).

- Formulas become MathML here, so that no script has to draw them.
- The table of settings is made from the settings.
- Links from a page to a file of the repository (an example, a configuration) lead to a copy in the site, those to the
  README to the first page.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from grasp_lora.config import Config

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_HERE = "<!-- table of settings -->"
_LEAVING = re.compile(r"(?<=\]\()((?:\.\./)+)((?:examples|configs|benchmarks|scripts)/[\w./-]+)(?=\))")
_README = re.compile(r"(?<=\]\()(?:\.\./)+README\.md(?=\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to."""
    for file in list(files.documentation_pages()):
        for _, target in _LEAVING.findall(file.content_string):
            if files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the copies, and put the table of settings where it belongs."""
    up = "../" * page.file.src_uri.count("/")
    markdown = _LEAVING.sub(lambda found: up + found[2], markdown)
    markdown = _README.sub(f"{up}index.md", markdown)
    return markdown.replace(SETTINGS_HERE, "\n".join(settings_tables()))


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML."""

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return str(convert(html.unescape(found[2]).strip(), display=display))

    return _FORMULA.sub(drawn, content)


# --- the table of settings -----------------------------------------------------------------------------------------


def settings_tables() -> Iterator[str]:
    """Yield one Markdown table per section: every setting with its default, its values and what it is for."""
    schema, defaults = Config.model_json_schema(), Config().model_dump(mode="json")
    plain = {name: field for name, field in schema["properties"].items() if "$ref" not in field}
    yield from _table("Top level", "", plain, defaults)
    for name, described in schema["properties"].items():
        if "$ref" in described:
            yield from _section(name, described["$ref"], schema["$defs"], defaults[name])


def _section(name: str, ref: str, types: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    section = types[ref.rpartition("/")[2]]
    plain = {key: field for key, field in section["properties"].items() if "$ref" not in field}
    if plain:
        yield from _table(f"`{name}`", section.get("description", ""), plain, defaults, f"{name}.")
    for key in section["properties"].keys() - plain.keys():
        yield from _section(f"{name}.{key}", section["properties"][key]["$ref"], types, defaults[key])


def _table(
    title: str, about: str, fields: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    yield from (f"## {title}", "", about.partition("\n")[0], "", "| setting | default | values | what |")
    yield "| --- | --- | --- | --- |"
    for key, field in fields.items():
        value = json.dumps(defaults[key], ensure_ascii=False)
        cells = (f"`{prefix}{key}`", f"`{value}`", _values(field), field.get("description", ""))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _values(field: Mapping[str, Any]) -> str:
    """Return which values a setting takes, from its JSON schema."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_values(option) for option in field["anyOf"])
    if field.get("type") == "array":
        inner = field.get("items") or {}
        return f"list of {_values(inner)}" if inner else "list"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return " ".join([str(field.get("type", "")), ", ".join(bounds)]).strip()
