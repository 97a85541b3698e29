"""Rules about the code itself: who may import whom, and how long a function may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "models", "data")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FUNCTION_LINES = 80

FORBIDDEN = {
    "models": ("data", "engine", "lightning", "albumentations"),
    "data": ("models", "engine", "lightning", "ultralytics"),
}
FOREIGN_TRAINER = ("ultralytics.engine", "ultralytics.data", "ultralytics.models", "ultralytics.cfg")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            names.add(node.module)
    return names


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports__follow_the_layers(path: Path) -> None:
    modules = imported_modules(path)
    forbidden = FORBIDDEN.get(path.relative_to(ROOT).parts[0], ())
    assert not [module for module in modules if is_within(module, forbidden + FOREIGN_TRAINER)]
    if path.parent == ROOT / "engine" / "memory":
        ours = {module for module in modules if is_within(module, ("engine", "data"))}
        assert all(is_within(module, ("engine.memory", "engine.errors")) for module in ours)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions__are_short(path: Path) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    assert not [node.name for node in nodes if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sources__hold_no_shortcuts(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module without a docstring"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), node.func.id
