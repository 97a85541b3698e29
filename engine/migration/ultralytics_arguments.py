"""Reads what an Ultralytics run was started with: a ``yolo`` command, Python code, a shell script, or an ``args.yaml``.

Nothing of it is run. What becomes of the arguments is the business of `engine.migration.translate`.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError
from engine.migration.python_calls import PythonError, Unread, training_arguments

TASKS = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")
MODES = ("train", "val", "predict", "export", "track", "benchmark")
FLAGS = (
    "agnostic_nms", "augment", "channels_last", "cls_remap", "cos_lr", "deterministic", "end2end", "exist_ok", "half",
    "int8", "nms", "overlap_mask", "plots", "profile", "rect", "resume", "save", "save_json", "save_txt", "single_cls",
    "val", "verbose",
)  # fmt: skip
"""Keys that mean ``key=True`` when they stand alone."""
VERBATIM = ("name", "project", "data", "model", "cfg")
"""Keys whose values are texts, whatever they look like."""
LINE_END = re.compile(r"([\\^`])?\s*(?:(?<!\S)#.*)?$")
"""A sign that the command continues in the next line, and a comment."""
PROGRAM = re.compile(r"[!$]?(\S*[/\\])?(yolo|ultralytics)(\.exe)?")
END = re.compile(r"[<>|&;]")
"""What ends a command in a shell."""
MAX_PATH = 250
PYTHON = re.compile(r"\.train\s*\(|\bYOLO\s*\(|Trainer\s*\(")
PROMPTS = re.compile(r"^[ \t]*(?:>>>|\.\.\.|In \[\d*\]:) ?|^[ \t]*[%!].*$", re.MULTILINE)
"""Of an interactive Python, and the lines of a notebook that are no Python."""


def parse_command(text: str) -> dict[str, Any]:
    """The arguments in a command or in Python code, or in a file with either.

    Args:
        text: ``yolo detect train key=value ...`` or ``YOLO(...).train(key=value, ...)``, or the path of such a file.

    Raises:
        ConfigError: If it is none of these.
    """
    place, text = _content(text)
    if PYTHON.search(text):
        try:
            arguments = training_arguments(PROMPTS.sub("", text))
        except PythonError as error:
            raise ConfigError(f"{place}: {error}") from error
    else:
        arguments = _words_to_arguments(_yolo_words(text, place), place)
        if arguments and (devices := re.search(r"\bCUDA_VISIBLE_DEVICES=(\S+)", text)):
            arguments["CUDA_VISIBLE_DEVICES"] = devices[1]
    if not arguments:
        raise ConfigError(f"{place}: is empty: give a command such as 'yolo detect train data=data.yaml'")
    if isinstance(cfg := arguments.get("cfg"), str):
        arguments = _read_mapping(Path(cfg), f"{place}: cfg") | arguments
        del arguments["cfg"]
    return _checked(arguments, place)


def read_args_yaml(path: Path) -> dict[str, Any]:
    """The arguments in an ``args.yaml`` that Ultralytics has left in a run's folder.

    Raises:
        ConfigError: If it cannot be read, or is another kind of file.
    """
    content = _read_mapping(path, "--from-args")
    if not {"data", "model", "epochs", "imgsz"} & set(content):
        raise ConfigError(f"--from-args: {path}: is no args.yaml of Ultralytics: it has neither data nor model")
    content.pop("cfg", None)  # its values are in the file already
    return _checked(content, f"--from-args: {path}")


def value_of(text: str) -> Any:
    """What a value means to Ultralytics: a Python literal, or ``true``, ``false`` and ``none`` in any case."""
    words = {"none": None, "null": None, "true": True, "false": False}
    text = text.strip()
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _content(text: str) -> tuple[str, str]:
    """Where the text is, for messages, and the text: that of a file, if it is the path of one."""
    name = text.strip()
    if "\n" in name or len(name) > MAX_PATH or not Path(name).expanduser().is_file():
        if re.fullmatch(r"\S+\.(py|sh|txt|ipynb|bat|ps1)", name):
            raise ConfigError(f"--from-command: {name}: no such file: give a command, code, or a file of either")
        return "--from-command", text
    try:
        content = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--from-command: {name}: cannot be read ({error}): give a text file in UTF-8") from error
    if name.endswith(".ipynb"):
        raise ConfigError(f"--from-command: {name}: is a notebook: save it as .py, or give the text of its cell")
    return f"--from-command: {name}", content


def _yolo_words(text: str, place: str) -> list[str]:
    """The words of the ``yolo`` command, without what stands before it and after it.

    Comments and backslashes at line ends are taken as people write them, also one before the other.
    """
    kept: list[str] = []
    goes_on = has_command = False
    for line in text.splitlines():
        end = LINE_END.search(line)
        bare = line[: end.start()] if end else line
        if has_command and not goes_on and not re.match(r"\s*[\w-]+\s*=", bare):
            break
        kept.append(bare)
        goes_on = bool(end and end[1]) or (goes_on and not bare.strip())
        has_command = has_command or bool(re.search(r"\b(yolo|ultralytics|train)\b", bare))
    words = _split(" ".join(kept), place)
    starts = [number + 1 for number, word in enumerate(words) if PROGRAM.fullmatch(word)]
    words = words[next((at for at in starts if not END.match((words[at:] or ["&"])[0])), (starts or [0])[-1]) :]
    return words[: next((number for number, word in enumerate(words) if END.match(word)), len(words))]


def _split(text: str, place: str) -> list[str]:
    """The words of a shell's line; backslashes in a path of Windows stay."""
    lexer = shlex.shlex(re.sub(r"\s\d(>)", r" \1", text), posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split, lexer.commenters = True, ""
    if re.search(r"\b[A-Za-z]:\\\S", text):
        lexer.escape = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}: put the whole command into single quotes") from error


def _words_to_arguments(words: list[str], place: str) -> dict[str, Any]:
    """``key=value``, and flags alone; blanks round ``=`` and within brackets are passed over, as Ultralytics does."""
    text = "\0".join(words)
    text = re.sub(r"\0?=(?:\0(?![^\0]*=))?", "=", text)
    text = re.sub(r"[\[(][^\])]*[\])]", lambda match: match[0].replace("\0", ""), text)
    arguments: dict[str, Any] = {}
    for word in filter(None, text.split("\0")):
        key, equals, value = word.strip().rstrip(",").partition("=")
        key = key.strip().lstrip("-").lower()
        if equals and not value.strip():
            raise ConfigError(f"{place}: {key}: has no value: expected key=value, such as batch=16")
        if equals:
            arguments[key] = _read(key, value)
        elif key in TASKS:
            arguments["task"] = key
        elif key in FLAGS and key != "val":  # alone, that is a mode
            arguments[key] = True
        elif key in MODES:
            arguments["mode"] = key
        else:
            raise ConfigError(f"{place}: {word}: expected key=value, such as batch=16")
    return arguments


def _read_mapping(path: Path, place: str) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        ConfigError: If it cannot be read, or is no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise ConfigError(f"{place}: {path}: cannot be read ({reason}): give a YAML file of Ultralytics") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{place}: {path}: holds no keys such as data and model: give a YAML file of Ultralytics")
    return content


def _read(key: str, value: Any) -> Any:
    """The number or truth value that a text stands for: YAML reads ``1e-3`` as text, and people quote ``"16"``."""
    if isinstance(value, str) and key in VERBATIM:
        return None if value.strip().lower() == "none" else value.strip()
    return value_of(value) if isinstance(value, str) else value


def _checked(arguments: dict[str, Any], place: str) -> dict[str, Any]:
    """The arguments that are set, if they are of training a detector."""
    arguments = {key: _plain(_read(key, value)) for key, value in arguments.items()}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, wanted in (("task", "detect"), ("mode", "train")):
        if (value := str(arguments.get(key, wanted)).lower()) != wanted:
            raise ConfigError(f"{place}: {key} is {value}: only 'yolo detect train' can be translated")
    model = str(arguments.get("model", ""))
    if match := re.search(r"-(seg|cls|pose|obb|sem|depth|world|worldv2)(?:[.-]\w+)*$", Path(model).name):
        raise ConfigError(f"{place}: model is {model}: a {match[1]} model: only detectors can be translated")
    if not isinstance(data := arguments.get("data", ""), str | Unread):
        raise ConfigError(f"{place}: data is {data}: give the path of one data.yaml")
    return arguments


def _plain(value: Any) -> Any:
    """Lists instead of tuples, as YAML has them."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
