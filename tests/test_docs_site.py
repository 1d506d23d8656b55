"""The documentation site: it builds strictly, needs nothing from elsewhere, and holds what its pages promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grasp_lora

pytest.importorskip("mkdocs")
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(Path(grasp_lora.__file__).resolve().parents[1])}
    built = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def html(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?([^\s\">]+)", text)
        assert loaded
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page.name


def test_formulas_are_drawn(site):
    text = html(site, "method.html")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 6
    assert "arithmatex" not in text
    assert "\\sum" not in text


def test_the_reference_has_every_function_and_setting(site):
    reference = html(site, "api.html")
    for name in (*grasp_lora.__all__, "GraspCallback", "HoldRatioCallback", "merge_into", "SearchResult", "DataError"):
        assert re.search(rf'<h3[^>]* id="[\w.]*\b{name}"', reference), name
    settings = html(site, "settings.html")
    assert "<code>controller.policy</code>" in settings
    assert "table of settings" not in settings


def test_files_that_pages_link_to_are_in_the_site(site):
    example = (ROOT / "examples" / "trainer.py").read_text(encoding="utf-8")
    assert (site / "examples" / "trainer.py").read_text(encoding="utf-8") == example
    assert 'href="examples/trainer.py"' in html(site, "integrations.html")
    assert 'href="index.html"' in html(site, "log.html")
