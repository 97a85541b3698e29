"""Rules about the code itself: who may import whom, where a test lies, and how long a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "models", "data")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted(path for folder in (*PACKAGES, "benchmarks") for path in (ROOT / "tests" / folder).rglob("test_*.py"))
MAX_FUNCTION_LINES = 80

LAYERS = {
    "engine": (
        ("fit", "validate", "predict", "export", "plan", "doctor", "inspect", "new"),
        ("command_line",),
        ("loop", "inference"),
        ("planning", "report", "run", "migration"),
        ("validation",),
        ("training", "machine"),
        ("memory",),
        ("errors",),
    ),
    "models": (("weights",), ("network",), ("detection", "recompute"), ("kernels", "precision", "architecture")),
    "data": (
        ("synthetic",),
        ("loading", "boards"),
        ("augmentation", "indexing"),
        ("formats",),
        ("errors", "replacing"),
    ),
}
"""The folders and files of each package: each may import what stands below it, and what is in its own folder."""
FORBIDDEN = {
    "models": ("data", "engine", "lightning", "albumentations"),
    "data": ("models", "engine", "lightning", "ultralytics"),
    "engine.validation": ("lightning",),
    "engine.training": ("lightning",),
    "engine.memory": ("lightning", "models", "data"),
}
FOREIGN_TRAINER = ("ultralytics.engine", "ultralytics.data", "ultralytics.models", "ultralytics.cfg")
SLOW = {
    "models.kernels": "Triton, which is not everywhere",
    "data.augmentation.extra_transforms": "albumentations",
    "engine.command_line.cli": "Lightning",
    "engine.machine.devices": "Lightning",
    "engine.run.checkpoint": "the networks",
    "engine.training.self_test": "the networks",
    "engine.inference.onnx_nms": "onnx, which is not everywhere",
    "engine.report.dataset_pictures": "matplotlib",
}
"""What may be imported inside a function, and what would else be imported too early."""


class Import(NamedTuple):
    """One name that a file imports."""

    module: str
    """The module itself: for ``from data import errors`` that is data.errors."""
    name: str
    """What is taken from it; empty for the module itself."""
    bound: str
    """What it is called here."""
    is_in_function: bool


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


OURS = {module_of(path): path for path in SOURCES}
PROGRAMS = {path.stem: path for folder in ("benchmarks", "docs") for path in (ROOT / folder).glob("*.py")}
"""Programs import each other by the name of the file alone."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Everything that a file imports, inside functions and for type checking, too."""
    return tuple(_imports_below(tree_of(path), path, is_in_function=False))


def _imports_below(node: ast.AST, path: Path, is_in_function: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, "", alias.asname or alias.name, is_in_function)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{relative(path)}: relative import"
        for alias in node.names:
            is_module = f"{node.module}.{alias.name}" in OURS
            module, name = (f"{node.module}.{alias.name}", "") if is_module else (str(node.module), alias.name)
            yield Import(module, name, alias.asname or alias.name, is_in_function)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        yield from _imports_below(child, path, is_in_function or is_function)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer_of(module: str) -> int:
    """The place in `LAYERS`, counted from the top; packages themselves are at the bottom."""
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    places = [place for place, folders in enumerate(LAYERS[package]) if folder in folders or not folder]
    assert places, f"{relative(OURS[module])}: say in LAYERS where {package}.{folder} belongs"
    return places[-1]


def folder_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports__stay_within_what_a_package_may_know(path: Path) -> None:
    module = module_of(path)
    forbidden = [name for within, names in FORBIDDEN.items() if is_within(module, (within,)) for name in names]
    for imported in imports_of(path):
        message = f"{relative(path)} must not import {imported.module}"
        assert not is_within(imported.module, (*forbidden, *FOREIGN_TRAINER)), message


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports__go_down(path: Path) -> None:
    module = module_of(path)
    for imported in imports_of(path):
        other = imported.module
        is_elsewhere = other.partition(".")[0] != module.partition(".")[0]
        if other not in OURS or is_elsewhere or folder_of(other) == folder_of(module):
            continue
        is_down = layer_of(other) > layer_of(module) or "." not in other
        assert is_down, f"{relative(path)} imports {relative(OURS[other])}, which is not below it"


@pytest.mark.parametrize("paths", [OURS, PROGRAMS], ids=["packages", "programs"])
def test_imports__go_in_no_circle(paths: dict[str, Path]) -> None:
    below = {module: {i.module for i in imports_of(path) if i.module in paths} for module, path in paths.items()}

    def look(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join(relative(paths[m]) for m in (*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(below[module]):
                look(other, (*way, module))
            done.add(module)

    done: set[str] = set()
    for module in paths:
        look(module, ())


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports__inside_functions_are_for_what_is_slow(path: Path) -> None:
    for imported in imports_of(path):
        if imported.is_in_function and imported.module in OURS:
            message = f"{relative(path)} imports {relative(OURS[imported.module])} inside a function"
            assert is_within(imported.module, tuple(SLOW)), message


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_private_names__stay_in_their_file(path: Path) -> None:
    modules = {i.bound: i.module for i in imports_of(path) if i.module in OURS and not i.name}
    taken = [(i.module, i.name) for i in imports_of(path) if i.module in OURS]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            taken.append((modules[ast.unparse(node.value)], node.attr))
    for module, name in taken:
        is_private = name.startswith("_") and not name.startswith("__")
        assert not is_private, f"{relative(path)} takes {name} from {relative(OURS[module])}"


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_tests__lie_under_the_path_of_their_file(path: Path) -> None:
    """A test that is not named after a file tests its whole folder."""
    counterpart = ROOT / path.relative_to(ROOT / "tests").with_name(path.name.removeprefix("test_"))
    assert counterpart.parent.is_dir(), f"{relative(path)}: there is no folder {relative(counterpart.parent)}"
    namesakes = [file for file in (*SOURCES, *PROGRAMS.values()) if file.name == counterpart.name]
    message = f"{relative(path)}: move it to the path of {', '.join(map(relative, namesakes))}"
    assert not namesakes or counterpart in namesakes, message


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions__are_short(path: Path) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, functions)]
    assert not [node.name for node in nodes if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sources__hold_no_shortcuts(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module without a docstring"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), node.func.id
