"""What SECURITY.md promises: no network, no code out of data, nothing secret in what a run leaves behind."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.errors import ConfigError
from engine.loop.loggers import check_logger_packages

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("engine", "models", "data") for path in (ROOT / package).rglob("*.py"))

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "os.execv", "os.spawnv", "tempfile.mktemp",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.FullLoader", "yaml.UnsafeLoader",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load",
    "torch.hub.load", "torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url",
    "xml.etree.ElementTree.parse", "xml.dom.minidom.parse",
    "shutil.unpack_archive", "tarfile.open",
    "urllib.request.urlopen", "requests.get", "requests.post", "socket.socket",
}  # fmt: skip
UNPACKING = {"extract", "extractall"}
"""Methods that write what an archive says, to where it says."""


def dotted(node: ast.expr, imports: dict[str, str]) -> str:
    """``os.system`` for that expression, whatever the names were imported as; "" for other expressions."""
    if isinstance(node, ast.Name):
        return imports.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, imports)):
        return f"{owner}.{node.attr}"
    return ""


def imported_names(tree: ast.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offences(source: str) -> list[str]:
    tree = ast.parse(source)
    imports = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, imports)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        constants = {key: value.value for key, value in keywords.items() if isinstance(value, ast.Constant)}
        if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in UNPACKING:
            found.append(name)
        if name == "torch.load" and constants.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if name in ("numpy.load", "numpy.memmap") and constants.get("allow_pickle"):
            found.append("numpy.load with allow_pickle")
        if name.startswith("subprocess.") and constants.get("shell"):
            found.append("subprocess with a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources__run_nothing_that_comes_from_outside(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import os as o\no.system('ls')",
        "from pickle import loads\nloads(b'')",
        "import yaml\nyaml.load(text, yaml.FullLoader)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import zipfile\nzipfile.ZipFile(path).extractall(folder)\narchive.extractall(folder)",
        "import subprocess\nsubprocess.run(text, shell=True)",
    ],
)
def test_offences__are_seen(source: str) -> None:
    assert offences(source)


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError(f"network access: {args}")
connect = socket.socket.connect
def local_only(self, address):
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = local_only, refuse, refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

from engine.loop.reporter import RunReporter
from engine.fit import main as fit
from engine.validate import main as validate
from engine.predict import main as predict
data, folder = sys.argv[1:]
fit(["--config=configs/quickstart.yaml", f"--data.root={data}", f"--run.folder={folder}/run", "--data.image_size=64",
     "--data.workers=1", "--trainer.max_epochs=1"])
checkpoint = f"{folder}/run/checkpoints/last.ckpt"
validate([f"--config={folder}/run/config.yaml", f"--ckpt_path={checkpoint}"])
predict([f"--ckpt_path={checkpoint}", f"--source={data.rpartition('/')[0]}/images/val", f"--output={folder}/found"])
print("all done")
"""


@pytest.mark.slow
def test_fit_validate_predict__without_any_network(tmp_path: Path) -> None:
    data = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=4, num_val=2, image_size=96))
    command = [sys.executable, "-c", OFFLINE, str(data), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "all done"
    assert list((tmp_path / "found").rglob("*.txt"))


@pytest.mark.parametrize(
    ("name", "value"), [("api_key", "abc123"), ("token", "abc123"), ("tracking_uri", "https://me:abc123@host/")]
)
def test_loggers__a_secret_in_the_configuration_is_refused_unshown(name: str, value: str) -> None:
    """``config.yaml`` lies in the run folder, which people share."""
    section = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x", name: value}}
    with pytest.raises(ConfigError, match=rf"^trainer\.logger: CSVLogger: {name}: .* environment") as error:
        check_logger_packages([section])
    assert "abc123" not in str(error.value)


def test_loggers__an_empty_key_is_no_secret() -> None:
    check_logger_packages({"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"api_key": None}})
