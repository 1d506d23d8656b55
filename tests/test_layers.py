"""The layers of the package, read from every module's imports: each imports only from layers below."""

import ast
from pathlib import Path

import pytest

import grasp_lora

ROOT = Path(grasp_lora.__file__).parent
MAX_LINES = 300
# From the top to the bottom; packages in one line do not import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"integrations"},
    {"api"},
    {"pipeline"},
    {"report"},
    {"baselines"},
    {"controller"},
    {"training"},
    {"probing"},
    {"adapters"},
    {"data", "metrics", "runs"},
    {"config"},
    {"rng"},
    {"errors"},
]
HEIGHT = {name: -depth for depth, names in enumerate(LAYERS) for name in names}
MAY_PRINT = {"cli", "cli.console"}
MODULES = sorted(ROOT.rglob("*.py"))


def dotted(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def imported(tree: ast.AST, module: str) -> set[str]:
    """Return the layers that `module` (named relative to the package) imports from, anywhere in it."""
    package = ["grasp_lora", *module.split(".")[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*prefix, alias.name] for alias in node.names]
        else:
            continue
        found |= {target(name) for name in names if name[0] == "grasp_lora"}
    return found


def target(name: list[str]) -> str:
    """Return the layer of a dotted name: a name the package itself offers counts as its `__init__`."""
    return name[1] if len(name) > 1 and name[1] in HEIGHT else "__init__"


def violations(source: str, module: str) -> list[str]:
    tree = ast.parse(source)
    own = module.split(".")[0]
    found = [
        f"{module} imports {layer}"
        for layer in sorted(imported(tree, module))
        if layer != own and HEIGHT[layer] >= HEIGHT[own]
    ]
    if not any(module == name or module.startswith(f"{name}.") for name in MAY_PRINT):
        found += [
            f"{module} prints in line {node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    if len(source.splitlines()) > MAX_LINES:
        found.append(f"{module} has {len(source.splitlines())} lines, at most {MAX_LINES}")
    return found


def test_every_module_has_a_layer():
    assert {dotted(path).split(".")[0] for path in MODULES} <= HEIGHT.keys()


@pytest.mark.parametrize("path", MODULES, ids=[dotted(path) for path in MODULES])
def test_module_keeps_to_its_layer_its_length_and_its_silence(path):
    assert violations(path.read_text(encoding="utf-8"), dotted(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("data.tasks", "from ..errors import DataError\nfrom .splits import draw\nimport torch", []),
        ("data.tasks", "from ..runs import RunFolder", ["data.tasks imports runs"]),
        ("data.world.words", "from ...metrics import f1", ["data.world.words imports metrics"]),
        ("data.world.words", "from ..splits import draw", []),
        ("adapters.masks", "import grasp_lora.training.loop", ["adapters.masks imports training"]),
        ("adapters.masks", "from .. import probing", ["adapters.masks imports probing"]),
        ("adapters.masks", "from grasp_lora import run", ["adapters.masks imports __init__"]),
        ("runs", "def f():\n    from .cli import main", ["runs imports cli"]),
        (
            "controller.round",
            "if TYPE_CHECKING:\n    from ..pipeline import story",
            ["controller.round imports pipeline"],
        ),
        ("errors", "from .config import Config", ["errors imports config"]),
        ("__init__", "from .api import run", []),
        ("cli", "from . import api\nprint(1)", []),
        ("cli.console", "print(1)", []),
        ("report.tables", "def f():\n    print(1)", ["report.tables prints in line 2"]),
        ("runs.big", "x = 1\n" * 301, ["runs.big has 301 lines, at most 300"]),
        ("runs.big", "x = 1\n" * 300, []),
    ],
)
def test_the_check_itself(module, source, expected):
    assert violations(source, module) == expected
