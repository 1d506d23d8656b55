"""What the wheel and the source archive hold, as the build backend lists it."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import grasp_lora
from grasp_lora.config import TrackerName

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def listed(builder: type) -> set[str]:
    return {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}


def test_the_wheel_holds_the_whole_package_and_nothing_else():
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "grasp_lora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = listed(WheelBuilder)
    assert found == expected
    assert {
        f"grasp_lora/assets/demo/{name}" for name in ("model.safetensors", "tokenizer.json", "config.json")
    } <= found
    assert "grasp_lora/py.typed" in found


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "CHANGELOG.md", "CITATION.cff", "README.md", "constraints.txt", "src/grasp_lora/py.typed",
     "configs/recommended.yaml", "examples/trainer.py", "docs/algorithm.md", "tests/pico.py"],
)  # fmt: skip
def test_the_source_archive_holds(name):
    assert name in listed(SdistBuilder)


def test_the_metadata_is_complete():
    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert (core.license_expression, core.readme_content_type) == ("Apache-2.0", "text/markdown")
    assert core.license_files == ["LICENSE"]
    assert "Typing :: Typed" in core.classifiers
    pythons = [found[1] for name in core.classifiers if (found := re.fullmatch(r".*Python :: (3\.\d+)", name))]
    said = f"Python {', '.join(pythons[:-1])} or {pythons[-1]}"
    assert core.requires_python == f">={pythons[0]}"
    for page in ("README.md", "docs/index.md", "docs/paper.md", "Makefile"):
        assert said in (ROOT / page).read_text(encoding="utf-8"), page
    assert core.scripts == {"grasp-lora": "grasp_lora.cli:main"}


def test_every_extra_that_an_error_names_exists():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'MissingExtraError\(\s*"[\w-]+", "([\w-]+)"', source)) | set(get_args(TrackerName))
    assert {"data", "quant", "wandb"} <= named
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_installed_version_is_the_declared_one():
    assert metadata.version("grasp-lora") == PROJECT["version"]
    assert Path(grasp_lora.__file__).with_name("py.typed").is_file()
