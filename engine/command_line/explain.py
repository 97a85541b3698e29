"""Explains a mistake on the command line or in a configuration: one line with what to write instead.

The parser stops at the first mistake and answers in its own terms. `check_words` therefore checks all words and keys
before it, and `explain` rewrites what the parser says about values.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from engine.errors import ConfigError
from engine.migration.translate import RENAMED, translate
from engine.migration.ultralytics_arguments import MODES, TASKS

SECTIONS = ("run", "data", "model", "memory", "trainer")
REFUSED_KEYS = {
    "data.reduced_decoding": "networks that learned from such pictures found less: leave it out (docs/data-loading.md)",
    "model.compile": "torch.compile is slower than recompute elementwise: leave it out (docs/speed.md)",
}
"""Keys of other trainers or older versions, and why yolofit does not have them."""
FORMER_DEFAULTS = {"data.reduced_decoding": False}
"""Keys of older versions; a ``config.yaml`` that holds such a key with this value is still accepted."""
ULTRALYTICS_KEYS = {key: RENAMED[key][0] for key in ("data", "epochs", "lrf", "patience", "seed")} | {
    "amp": "model.precision",
    "batch": "data.batch_size",
    "accumulate": "data.micro_batch_size",
    "device": "trainer.devices",
    "freeze": "model.freeze_layers",
    "imgsz": "data.image_size",
    "lr0": "model.optimizer.lr",
    "name": "run.folder",
    "project": "run.folder",
}
KEYS_ELSEWHERE: dict[str, str] = (
    {theirs: ours for theirs, (ours, _) in RENAMED.items()}
    | ULTRALYTICS_KEYS
    | {
        "bs": "data.batch_size",
        "budget": "memory.budget",
        "checkpoint": "ckpt_path",
        "ckpt": "ckpt_path",
        "cos_lr": "model.schedule.decay",
        "ema_decay": "model.ema.decay",
        "gpus": "trainer.devices",
        "grad_clip": "model.optimizer.max_grad_norm",
        "half": "model.precision",
        "img": "data.image_size",
        "img_size": "data.image_size",
        "learning_rate": "model.optimizer.lr",
        "max_epoch": "trainer.max_epochs",
        "model": "model.network",
        "num_epochs": "trainer.max_epochs",
        "num_workers": "data.workers",
        "optimizer": "model.optimizer.name",
        "output": "run.folder",
        "output_dir": "run.folder",
        "pretrained": "model.weights",
        "rect": "data.rectangular_validation",
        "resume": "ckpt_path",
        "save_dir": "run.folder",
        "scheduler": "model.schedule.decay",
        "warmup_bias_lr": "model.schedule.warmup_bias_lr",
    }
)
"""yolofit's key for the name that Ultralytics or another trainer uses."""
LINKED_KEYS = {
    "data.max_epochs": "trainer.max_epochs",
    "data.seed": "seed_everything",
    "model.batch_size": "data.batch_size",
    "model.image_size": "data.image_size",
    "model.micro_batch_size": "data.micro_batch_size",
}
"""Keys that follow from others."""
COUNTED_TOGETHER = ("model", "device", "amp")
"""Ultralytics' arguments whose values change with their names (`engine.migration.translate`)."""
DATA_SET_KEYS = {"train", "val", "names", "nc", "path", "test"}
ARGS_YAML_KEYS = {"imgsz", "epochs", "task", "mode", "batch"}
WORDS_TO_DROP = {"yolo", "ultralytics", *TASKS, *MODES}
CONFIG_OPTIONS = ("--config", "-c")
SUFFIXES_OF_WEIGHTS = (".pt", ".pth", ".safetensors")


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would silently keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        given = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in {key for key in given if given.count(key) > 1}:
            line = max(one.start_mark.line for one, _ in node.value if one.value == key) + 1
            raise yaml.YAMLError(f"line {line}: the key {key} is given twice: keep one of them")
        return super().construct_mapping(node, deep)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a configuration; refuse other files with messages that name the file.

    Raises:
        ConfigError: If it is not UTF-8, not YAML, lacks keys below a section, or is a file of another kind.
    """
    try:
        content = _NoDuplicates(path.read_text(encoding="utf-8-sig")).get_single_data()
    except FileNotFoundError as error:
        raise ConfigError(f"--config: {path}: no such file: python -m engine.new writes one") from error
    except OSError as error:
        raise ConfigError(f"--config: {path}: cannot be read ({error.strerror}): give a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config: {path}: is not in UTF-8 ({error}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second for dates such as 2026-13-01
        raise ConfigError(f"--config: {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path}: holds no keys, such as data and model: give a configuration")
    shown = shlex.quote(str(path))
    if is_data_set(content):
        raise ConfigError(f"--config: {path}: describes a data set: give it as --data.root {shown}")
    if len(ARGS_YAML_KEYS & set(content)) > 1:
        command = f"python -m engine.new --from-args {shown}"
        raise ConfigError(f"--config: {path}: holds Ultralytics' arguments: translate it: {command}")
    for section in SECTIONS:
        if not isinstance(content.get(section, {}), dict):
            raise ConfigError(f"{path}: {section}: {content[section]}: expected keys below it, indented")
    return content


def is_data_set(content: Any) -> bool:
    """Whether the content of a YAML file is a ``data.yaml``."""
    return isinstance(content, dict) and not set(content) & set(SECTIONS) and len(DATA_SET_KEYS & set(content)) > 1


class Words:
    """The words of a command line, divided as the parser does."""

    def __init__(self, args: list[str], actions: Mapping[str, Any]) -> None:
        """Divide the words after the program's name; ``actions`` has the parser's by option."""
        self.actions = actions
        self.options: list[tuple[str, str | None]] = []
        """Each option with its value."""
        self.strays: list[str] = []
        """Words that belong to no option."""
        files: list[str] = []
        others: list[str] = []
        rest = list(args)
        while rest:
            given = list(rest)
            word = rest.pop(0)
            if not re.match(r"--?[A-Za-z]", word):
                self.strays.append(word)
                continue
            name, equals, value = word.partition("=")
            if equals:
                self.options.append((name, value))
            else:
                self.options.append((name, rest.pop(0) if rest and self._takes(name, rest[0]) else None))
            if name in CONFIG_OPTIONS and (config := self.options[-1][1]):
                files += [name, _without_former_keys(config)]
            else:
                others += given[: len(given) - len(rest)]
        self.in_order: list[str] = files + others
        """The options, configurations first: the command line wins over files, wherever its options stand."""

    def _takes(self, name: str, word: str) -> bool:
        action = self.actions.get(name)
        if action is not None and action.nargs == 0:
            return False
        return not word.startswith("--") and not (action is None and "=" in word)

    @property
    def files(self) -> list[Path]:
        """The named configuration files; a value of several lines is a configuration itself, such as `engine.new`'s."""
        values = [value for name, value in self.options if name in CONFIG_OPTIONS and value is not None]
        return [Path(value) for value in values if "\n" not in value]


def _without_former_keys(config: str) -> str:
    """Return a configuration that the parser accepts: its name, or its content without keys of `FORMER_DEFAULTS`."""
    if "\n" in config:
        return config
    content = read_config_file(Path(config))
    former = [key.split(".") for key in FORMER_DEFAULTS if _is_former(key, _lookup(content, key))]
    for section, name in former:
        del content[section][name]
    return yaml.safe_dump(content) if former else config


def _is_former(key: str, value: Any) -> bool:
    return key in FORMER_DEFAULTS and value is FORMER_DEFAULTS[key]


def _lookup(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def check_words(words: Words, known: Mapping[str, Any]) -> None:
    """Refuse unknown keys and words that are no options, in the command line and its files, all of them together.

    Raises:
        ConfigError: With each mistake, and what to write instead.
    """
    mistakes = [
        f"{name.lstrip('-')}: is empty: give a value, or leave it out" for name, value in words.options if value == ""
    ]
    mistakes += [
        _unknown_key(key, known)
        for name, _ in words.options
        if name not in words.actions and not is_known(key := name.lstrip("-").removesuffix("+"), known)
    ]
    for file in words.files:
        mistakes += [f"{file}: {mistake}" for mistake in _mistakes_in(read_config_file(file), known)]
    if words.strays:
        shown = " ".join(shlex.quote(word) for word in words.strays)
        is_plain = all(word in WORDS_TO_DROP or _options_for(word, known) for word in words.strays)
        remedy = corrected(words, known) if is_plain else "write a list without blanks: --trainer.devices [0,1]"
        mistakes.append(f"{shown}: options are written --key value: {remedy}")
    if mistakes:
        raise ConfigError("; ".join(dict.fromkeys(mistakes)))


def is_known(key: str, known: Mapping[str, Any]) -> bool:
    """Whether a key exists, or belongs to one that takes keys of its own, such as a callback's."""
    if key in known:
        return True
    parent = key.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    return parent != "" and _takes_keys(known[parent])


def _takes_keys(kind: Any) -> bool:
    """Whether values of a type have keys: maps, and classes with arguments."""
    if kind is None or get_origin(kind) is Literal:
        return False
    if get_args(kind) and get_origin(kind) is not dict:
        return any(_takes_keys(part) for part in get_args(kind))
    return kind not in (int, float, str, bool, type(None), Path)


def _mistakes_in(content: Mapping[Any, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        is_section = any(one.startswith(f"{key}.") for one in known)
        if is_section and isinstance(value, dict):
            yield from _mistakes_in(value, known, f"{key}.")
        elif not (is_section or is_known(key, known) or _is_former(key, value)):
            yield _unknown_key(key, known)
        elif value == "":
            yield f"{key}: is empty: give a value, or leave it out"


def _unknown_key(key: str, known: Mapping[str, Any]) -> str:
    if key in REFUSED_KEYS:
        return f"{key}: no such key: {REFUSED_KEYS[key]}"
    if key in LINKED_KEYS:
        return f"{key}: follows from {LINKED_KEYS[key]}: set that"
    near = meant(key, known)
    if not near:
        return f"{key}: no such key: see --help for all keys"
    return f"{key}: no such key: did you mean {' or '.join(near)}?"


def meant(key: str, known: Mapping[str, Any]) -> list[str]:
    """Return the keys that may have been meant, the likeliest first: those of the same name, else similar ones."""
    section, _, name = key.rpartition(".")
    known = {one: kind for one, kind in known.items() if kind is not None}
    if key == "model.name":
        return ["model.network"]
    if name in KEYS_ELSEWHERE and KEYS_ELSEWHERE[name] != key:
        return [KEYS_ELSEWHERE[name]]
    for where in (f"{section}.", ""):
        namesakes = [one for one in known if one.startswith(where) and one.rpartition(".")[2] == name]
        if namesakes:
            depth = min(one.count(".") for one in namesakes)
            return [one for one in namesakes if one.count(".") == depth]
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return near
    names = {one.rpartition(".")[2]: one for one in known}
    return [names[one] for one in difflib.get_close_matches(name, list(names), n=1, cutoff=0.8)]


def corrected(words: Words, known: Mapping[str, Any]) -> str:
    """Return the command line that was meant, as far as it can be known."""
    result = [f"{name} {shlex.quote(value)}" if value is not None else name for name, value in _as_ours(words, known)]
    for word in words.strays:
        result += _options_for(word, known)
    return " ".join([program(), *result])


def _as_ours(words: Words, known: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    for name, value in words.options:
        near = [] if name in words.actions else meant(name.lstrip("-"), known)
        yield (f"--{near[0]}" if len(near) == 1 else name), value


def _options_for(word: str, known: Mapping[str, Any]) -> list[str]:
    """Return the options for a word such as ``epochs=3`` or ``data.yaml``; none if they cannot be known."""
    name, equals, value = word.partition("=")
    if not equals:
        return _option_for_file(word)
    if name == "model" and "validate" in program():
        return [f"--ckpt_path {shlex.quote(value)}"]
    if name in COUNTED_TOGETHER:
        lines = translate({name: yaml.safe_load(value) if value else value}).lines
        settings = next((line.settings for line in lines if line.theirs.startswith(f"{name}=")), {})
        return [f"--{key} {shlex.quote(str(ours).replace(' ', ''))}" for key, ours in settings.items()]
    keys = [name] if known.get(name) is not None else meant(name, known)
    return [f"--{keys[0]} {shlex.quote(value)}"] if keys else []


def _option_for_file(word: str) -> list[str]:
    """Return the option for a file without an option; none for ``train`` and the like."""
    path = Path(word)
    shown = shlex.quote(word)
    if path.suffix in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            is_data = is_data_set(content)
        except (OSError, ValueError, yaml.YAMLError):
            is_data = "data" in path.stem or "coco" in path.stem
        return [f"--data.root {shown}" if is_data else f"--config {shown}"]
    if path.suffix == ".ckpt" or (path.suffix in SUFFIXES_OF_WEIGHTS and "validate" in program()):
        return [f"--ckpt_path {shown}"]
    return [f"--model.weights {shown}"] if path.suffix in SUFFIXES_OF_WEIGHTS else []


def program() -> str:
    """Return the running command, such as ``python -m engine.fit``."""
    name = Path(sys.argv[0]).stem
    return f"python -m engine.{name if name in ('validate', 'plan', 'doctor') else 'fit'}"


def explain(message: str, config_files: list[Path]) -> str:
    """Rewrite jsonargparse's message as one line: file or key, value, rule, remedy."""
    line = " ".join(message.split())
    if match := re.match(r"the following arguments are required: (.+)", line):
        return f"{match[1]}: missing: give --{match[1]}, or a configuration that has it with --config"
    if match := re.match(r"argument (?:-c/)?(\S+?)(?:/\S+)?: expected one argument", line):
        return f"{match[1]}: missing: a value must follow"
    if match := re.match(r'Linked "(.+?)" must be given via "(.+?)"', line):
        return f"{match[1]}: follows from {match[2]}: set that"
    keys = re.findall(r'(?:Parser key|Key) "([\w.]+)"', line)
    if not keys:
        return reason_in(message)
    key = keys[0]
    if match := re.search(r'Parser key "([\w.]+)": Unable to load config "(.*?)"$', line):
        key = KEYS_ELSEWHERE.get(match[1].rpartition(".")[2])
        remedy = f"did you mean {key}?" if key else "give {key: value}, or a file with them"
        return f"{match[1]}: {match[2]}: has keys below it: {remedy}"
    if len(keys) > 1 and keys[-1].startswith(f"{key}."):
        key = keys[-1]
    value = re.search(r"Given value: (.*)$", line) or re.search(r"Got value: (.*)$", line)
    shown = "" if value is None or "class_path" in value[1] else f"{value[1]}: "
    return f"{place_of(key, config_files, value[1] if value else None)}{key}: {shown}{reason_in(message)}"


def reason_in(message: str) -> str:
    """Extract the reason from jsonargparse's message about a type: which class lacks what, or what was expected."""
    line = " ".join(message.split())
    if match := re.search(
        r"Problem with given class_path '(.+?)': (.+?)(?: - (?:Not a valid|Expected|Import) | Given value |$)", line
    ):
        return f"{match[1]}: {_class_mistake(match[2])}"
    if match := re.search(r"dot import path string: (\S*[A-Za-z_]\S*) - Not a valid subclass", line):
        return f"{match[1]}: there is no such class: give the path by which Python imports it"
    if match := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", line):
        return f"{match[1]}: is not a {match[2]}: give the class_path of one"
    subtypes = re.search(r"Subtypes: \[(.*?)\] Errors:(?: - (.+?))? - ", line)
    if subtypes and subtypes[2] and not subtypes[2].startswith("Expected"):
        own_message = subtypes[2].replace("`", "").rstrip(". ")
        return f"{_key_of(subtypes[1])}{own_message}"
    if subtypes:
        return f"expected {_types(subtypes[1])}"
    if match := re.search(r"Expected an? (.+?)(?:\. Got value: .*)?$", line):
        return f"expected {_types(match[1])}"
    return line.removeprefix("- ")


def _class_mistake(line: str) -> str:
    if match := re.match(r"the following arguments are required: (.+)", line):
        return f"needs init_args with {match[1]}"
    if match := re.match(r"(?:Option|Group .*? option) '(.+?)' is not accepted", line):
        return f"{match[1]}: it has no such argument: leave it out of init_args"
    if match := re.match(r'Parser key "(.+?)": (.+)', line):
        value = re.search(r"(?:Got|Given) value: (.*)$", match[2])
        return f"{match[1]}: {f'{value[1]}: ' if value else ''}{reason_in(match[2])}"
    if re.match(r"No module named|module .* has no attribute", line):
        return f"{line}: give the path by which Python imports the class"
    return line


def _types(text: str) -> str:
    """Write types in words: ``[<class 'int'>, typing.Literal['auto']]`` becomes ``int, 'auto'``."""
    text = re.sub(r"^\[|\]$", "", text) if text.startswith("[<") else text
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")
    text = re.sub(r"(?:[\w]+\.)+(\w+)", r"\1", text)  # without modules
    return re.sub(r"Literal\[('\w+')\]", r"\1", text).replace("Literal[", "one of [")


def _key_of(types: str) -> str:
    """Return the key that takes a class: a message from the making of an object does not have it."""
    keys = {"Callback": "trainer.callbacks", "Logger": "trainer.logger", "BasicTransform": "data.transforms"}
    return next((f"{key}: " for name, key in keys.items() if f".{name}" in types), "")


def place_of(key: str, config_files: list[Path], value: str | None = None) -> str:
    """Return the file that sets a key (to ``value``, if given), for messages; empty if the command line sets it."""
    for path in reversed(config_files):
        found = _lookup(read_config_file(path), key)
        if found is not None and value in (None, str(found)):
            return f"{path}: "
    return ""
