"""Reads the arguments of an Ultralytics run: from a ``yolo`` command, Python code, a shell script or an ``args.yaml``.

Nothing of it is run. `engine.migration.translate` translates the arguments.
"""

from __future__ import annotations

import ast
import re
import shlex
from itertools import takewhile
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
"""Keys that mean ``key=True`` if they have no value."""
VERBATIM = ("name", "project", "data", "model", "cfg")
"""Keys whose values are always texts."""
LINE_END = re.compile(r"([\\^`])?\s*(?:(?<!\S)#.*)?$")
"""The mark of a command that continues on the next line, and a comment."""
PROGRAM = re.compile(r"[!$]?(\S*[/\\])?(yolo|ultralytics)(\.exe)?")
END = re.compile(r"[<>|&;]")
"""What ends a command in a shell."""
MAX_PATH = 250
PYTHON = re.compile(r"\.train\s*\(|\bYOLO\s*\(|Trainer\s*\(")
PROMPTS = re.compile(r"^[ \t]*(?:>>>|\.\.\.|In \[\d*\]:) ?|^[ \t]*[%!].*$", re.MULTILINE)
"""Prompts of an interactive Python, and lines of a notebook that are not Python."""


def parse_command(text: str) -> dict[str, Any]:
    """The arguments in a command, in Python code, or in a file with one of them.

    Args:
        text: ``yolo detect train key=value ...`` or ``YOLO(...).train(key=value, ...)``, or the path of such a file.

    Raises:
        ConfigError: If the text is none of these.
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
        raise ConfigError(f"{place}: empty. Give a command such as 'yolo detect train data=data.yaml'.")
    if isinstance(cfg := arguments.get("cfg"), str):
        arguments = _read_mapping(Path(cfg), f"{place}: cfg") | arguments
        del arguments["cfg"]
    return _checked(arguments, place)


def read_args_yaml(path: Path) -> dict[str, Any]:
    """The arguments in an ``args.yaml``, which Ultralytics writes into the folder of a run.

    Raises:
        ConfigError: If the file cannot be read or is another kind of file.
    """
    content = _read_mapping(path, "--from-args")
    if not {"data", "model", "epochs", "imgsz"} & set(content):
        raise ConfigError(f"--from-args: {path}: neither data nor model. Give an args.yaml of Ultralytics.")
    content.pop("cfg", None)  # the file already has its values
    return _checked(content, f"--from-args: {path}")


def value_of(text: str) -> Any:
    """A value as Ultralytics reads it: a Python literal; ``true``, ``false`` or ``none`` in any case; or text."""
    words = {"none": None, "null": None, "true": True, "false": False}
    text = text.strip()
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _content(text: str) -> tuple[str, str]:
    """The place of the text, for messages, and the text; if ``text`` is the path of a file, its content."""
    name = text.strip()
    if "\n" in name or len(name) > MAX_PATH or not Path(name).expanduser().is_file():
        if re.fullmatch(r"\S+\.(py|sh|txt|ipynb|bat|ps1)", name):
            raise ConfigError(f"--from-command: {name}: no such file. Give a command, code, or an existing file.")
        return "--from-command", text
    try:
        content = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--from-command: {name}: cannot be read ({error}). Give a text file in UTF-8.") from error
    if name.endswith(".ipynb"):
        raise ConfigError(f"--from-command: {name}: a notebook. Save it as .py, or give the text of the cell.")
    return f"--from-command: {name}", content


def _yolo_words(text: str, place: str) -> list[str]:
    """The words of the ``yolo`` command, without the words before and after it.

    A line may end with a backslash, a comment, or both.
    """
    kept: list[str] = []
    is_continued = has_command = False
    for line in text.splitlines():
        end = LINE_END.search(line)
        bare = line[: end.start()] if end else line
        if has_command and not is_continued and not re.match(r"\s*[\w-]+\s*=", bare):
            break
        kept.append(bare)
        is_continued = bool(end and end[1]) or (is_continued and not bare.strip())
        has_command = has_command or bool(re.search(r"\b(yolo|ultralytics|train)\b", bare))
    words = _split(" ".join(kept), place)
    start = 0
    for number, word in enumerate(words, 1):
        if PROGRAM.fullmatch(word):
            start = number
            if start < len(words) and not END.match(words[start]):
                break
    return list(takewhile(lambda word: not END.match(word), words[start:]))


def _split(text: str, place: str) -> list[str]:
    """The words of a shell command; backslashes of Windows paths are kept."""
    lexer = shlex.shlex(re.sub(r"\s\d(>)", r" \1", text), posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split, lexer.commenters = True, ""
    if re.search(r"\b[A-Za-z]:\\\S", text):
        lexer.escape = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}. Put the whole command into single quotes.") from error


def _words_to_arguments(words: list[str], place: str) -> dict[str, Any]:
    """Arguments from words such as ``key=value`` and flags. Spaces around ``=`` and in brackets are ignored."""
    text = "\0".join(words)
    text = re.sub(r"\0?=(?:\0(?![^\0]*=))?", "=", text)
    text = re.sub(r"[\[(][^\])]*[\])]", lambda match: match[0].replace("\0", ""), text)
    arguments: dict[str, Any] = {}
    for word in filter(None, text.split("\0")):
        key, equals, value = word.strip().rstrip(",").partition("=")
        key = key.strip().lstrip("-").lower()
        if equals and not value.strip():
            raise ConfigError(f"{place}: {key}: no value. Write key=value, such as batch=16.")
        if equals:
            arguments[key] = _read(key, value)
        elif key in TASKS:
            arguments["task"] = key
        elif key in FLAGS and key != "val":  # without a value, val is a mode
            arguments[key] = True
        elif key in MODES:
            arguments["mode"] = key
        else:
            raise ConfigError(f"{place}: {word}: not an argument. Write key=value, such as batch=16.")
    return arguments


def _read_mapping(path: Path, place: str) -> dict[str, Any]:
    """The content of a YAML file with keys.

    Raises:
        ConfigError: If the file cannot be read or has no keys.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise ConfigError(f"{place}: {path}: cannot be read ({reason}). Give a YAML file of Ultralytics.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{place}: {path}: no keys such as data and model. Give a YAML file of Ultralytics.")
    return content


def _read(key: str, value: Any) -> Any:
    """The value of a text. YAML reads ``1e-3`` as text, and people write ``"16"`` in quotes."""
    if isinstance(value, str) and key in VERBATIM:
        return None if value.strip().lower() == "none" else value.strip()
    return value_of(value) if isinstance(value, str) else value


def _checked(arguments: dict[str, Any], place: str) -> dict[str, Any]:
    """The arguments that have a value.

    Raises:
        ConfigError: If they do not train one detector on one data set.
    """
    arguments = {key: _plain(_read(key, value)) for key, value in arguments.items()}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, wanted in (("task", "detect"), ("mode", "train")):
        if (value := str(arguments.get(key, wanted)).lower()) != wanted:
            raise ConfigError(f"{place}: {key}: {value}: not supported. Give a command of 'yolo detect train'.")
    model = str(arguments.get("model", ""))
    if match := re.search(r"-(seg|cls|pose|obb|sem|depth|world|worldv2)(?:[.-]\w+)*$", Path(model).name):
        raise ConfigError(f"{place}: model: {model}: a {match[1]} model is not supported. Give a detector.")
    if not isinstance(data := arguments.get("data", ""), str | Unread):
        raise ConfigError(f"{place}: data: {data}: not a path. Give the path of one data.yaml.")
    return arguments


def _plain(value: Any) -> Any:
    """The value with lists instead of tuples, as YAML has it."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
