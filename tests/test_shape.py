"""The shape of the house: imports point downwards, start-up is light, functions stay small enough to read."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    "errors",
    "files",
    "redact",
    "network",
    "intervals",
    "recipe",
    "data",
    "batching",
    "model",
    "objective",
    "evaluation",
    "engine",
    "report",
    "serving",
    "command_line",
    "commands",
    "cli",
    "__main__",
]

FILES = sorted((ROOT / "rmtrain").rglob("*.py"))
MODULES = [file for file in FILES if file != ROOT / "rmtrain/__init__.py"]  # it only names where public things live


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def own_imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Every import of a module of ours, and whether it stands at module level."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "rmtrain" else [f"rmtrain.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "rmtrain":
                yield name, id(node) in top


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_modules_import_only_from_layers_above(file: Path) -> None:
    """Above: in the order of the design."""
    for imported, _ in own_imports(ast.parse(file.read_text())):
        assert layer(imported) <= layer(name_of(file)), f"{name_of(file)} imports {imported}"


def test_no_import_cycle_within_a_folder() -> None:
    graph = {name_of(file): {name for name, _ in own_imports(ast.parse(file.read_text()))} for file in MODULES}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in finished:
            for imported in graph.get(module, set()):
                visit(imported, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())
    assert len(finished) > 20, "guard: the graph was read"


def test_only_the_command_line_imports_lazily() -> None:
    lazy = {name_of(file) for file in MODULES for _, top in own_imports(ast.parse(file.read_text())) if not top}
    assert lazy == {"rmtrain.cli"}


@pytest.mark.parametrize("module", ["rmtrain", "rmtrain.cli", "rmtrain.recipe.load", "rmtrain.recipe.schema"])
def test_light_modules_load_no_heavy_library(module: str) -> None:
    heavy = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy", "matplotlib")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]"


def test_numbers_of_scores_need_no_transformers() -> None:
    """`eval --scores` and `--compare` import torch, which computes the loss, and nothing that loads data or models."""
    heavy = ("torch", "transformers", "datasets", "accelerate", "peft")
    code = f"import sys, rmtrain.cli, rmtrain.commands.evaluate_scores; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == "['torch']"


def test_public_functions_are_annotated_and_documented() -> None:
    missing = []
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{name_of(file)}.{node.name}")
    assert not missing
