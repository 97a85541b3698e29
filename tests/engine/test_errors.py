"""However a command ends, its last line is for people."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.errors import INTERRUPTED_STATUS, run_command


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


def test_run_command__ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(interrupted)
    assert exit_.value.code == INTERRUPTED_STATUS
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("work", "pipe", "out"),
    [
        ("print('한 \\udcb1')", "cat", "\\ud55c \\udcb1\n"),
        ("[print('a line') for _ in range(100_000)]", "head -n 1", "a line\n"),
        ("print('a line')", "true", ""),
    ],
)
def test_run_command__writes_into_any_terminal_and_pipe(work: str, pipe: str, out: str) -> None:
    """Into one that knows ASCII only, and into one whose reader has had enough."""
    command = f'PYTHONIOENCODING=ascii "{sys.executable}" -c "$0" | {pipe}'
    program = f"from engine.errors import INTERRUPTED_STATUS, run_command; run_command(lambda _: {work})"
    done = subprocess.run(["sh", "-c", command, program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (out, "")


def test_run_command__needs_no_standard_output() -> None:
    program = "from engine.errors import run_command; run_command(lambda _: print('a line'))"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" >&-', program], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b""
