"""The docs say what is true: generated parts are up to date, links and keys exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from engine.command_line.cli import CommandLine
from engine.migration.translate import translate
from engine.migration.ultralytics_arguments import parse_command

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.ko.md"])
GENERATED = ("benchmarks.md", "configuration.md")
HAND_WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(page for page in PAGES if page.name not in GENERATED)]
PACKAGES = ("engine", "models", "data")
OURS = ("guide", "accumulation", "troubleshooting", "migrating", "README.ko")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    return {action.dest for action in CommandLine(["--data.root=any"]).parser._actions}


def test_generated_parts__are_up_to_date(generate: ModuleType) -> None:
    stale = [path.name for path, text in generate.pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links__lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in OURS], ids=lambda page: page.stem)
def test_keys__exist(page: Path, known_keys: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:data|model|memory|trainer|run)\.[a-z_.]+[a-z_])[`:]", text))
    named -= {name for name in named if name.endswith((".yaml", ".csv", ".png"))}
    assert named and named <= known_keys
    pattern = r"(?<![\w/])(benchmarks/[\w./-]+\.(?:json|py)|engine/[\w./]+\.py|configs/[\w.]+\.yaml)"
    files = set(re.findall(pattern, text))
    assert not [name for name in files if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", ["docs/migrating.md", "README.ko.md"])
def test_commands_to_translate__can_be(name: str) -> None:
    (command,) = re.findall(r"--from-command '([^']+)'", (ROOT / name).read_text(encoding="utf-8"))
    settings = translate(parse_command(command)).settings
    assert settings["data.batch_size"] == 32 and settings["data.image_size"] == 640


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_examples__are_yaml(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_lines__have_at_most_120_characters(page: Path) -> None:
    text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


def test_contributing__names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:engine|models|data|tests|benchmarks|docs)/[\w./]*)`", text))
    assert len(named) > 10 and not [name for name in named if not (ROOT / name).exists()]
    tree = text.split("```")[1]
    folders = [path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")]
    assert not [folder for folder in folders if f"\n  {folder.name}/ " not in tree]


def test_faults__name_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
