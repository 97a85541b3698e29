"""Finds the call of Ultralytics' training in Python code and reads its arguments without running the code.

It reads literals, and names that hold a literal, unless a condition or a loop sets them. Every other value is kept as
its source text, for people to read.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from typing import Any

LIKELY_KEYS = {"data", "epochs", "imgsz", "batch", "cfg"}
"""A call of ``train`` with one of these keywords is a call of Ultralytics, whatever object it is called on."""
OTHER_MODELS = ("RTDETR", "YOLOWorld", "YOLOE", "NAS", "SAM", "FastSAM")
UNCERTAIN = (ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Match)
"""Statements whose names have no known value afterwards. ``if`` is another one."""


class PythonError(ValueError):
    """The code does not have exactly one call of training."""


@dataclass(frozen=True)
class Unread:
    """An argument that cannot be known without running the code."""

    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True)
class _Model:
    """The result of ``YOLO(...)``, with the arguments that it passes to training."""

    maker: str
    arguments: dict[str, Any]


def training_arguments(code: str) -> dict[str, Any]:
    """The arguments of the one call of training.

    Args:
        code: A script, or a part of one.

    Returns:
        Values by name, including ``model``. A value that cannot be known is `Unread`.

    Raises:
        PythonError: If the code is not valid Python, or has no such call, or several.
    """
    try:
        tree = ast.parse(textwrap.dedent(code).strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise PythonError(f"not valid Python{where} ({getattr(error, 'msg', error)}). Give whole lines.") from error
    reader = _Reader()
    reader.read(tree, is_certain=True)
    if not reader.calls:
        raise PythonError("no call of training. Give code such as YOLO('yolo11l.pt').train(data='data.yaml').")
    if len(reader.calls) > 1:
        lines = ", ".join(str(line) for line, _ in reader.calls)
        raise PythonError(f"{len(reader.calls)} calls of training (lines {lines}). Give the code of one of them.")
    return reader.calls[0][1]


class _Reader:
    """Reads the code from top to bottom and knows the value of each name at that point."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.makers = {"YOLO": "YOLO", **{name: name for name in OTHER_MODELS}}  # class by its name in the code
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def read(self, node: ast.AST, is_certain: bool) -> None:
        """Read a statement or an expression and everything in it."""
        if isinstance(node, ast.ImportFrom):
            self.makers |= {one.asname or one.name: one.name for one in node.names if one.name in self.makers}
        below_is_certain = is_certain and not isinstance(node, UNCERTAIN) and not _is_condition(node)
        for child in ast.iter_child_nodes(node):
            self.read(child, below_is_certain)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            self._assign(node, is_certain)
        elif isinstance(node, ast.arg):
            self.names[node.arg] = Unread(node.arg)
        elif isinstance(node, ast.For | ast.NamedExpr | ast.withitem):
            self._forget(node)
        elif isinstance(node, ast.Call):
            self._call(node)

    def _assign(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, is_certain: bool) -> None:
        """Note the value of a name from here on; `Unread` if it cannot be known."""
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            is_known = is_certain and not isinstance(node, ast.AugAssign)
            if isinstance(target, ast.Name) and is_known and node.value is not None:
                self.names[target.id] = self.value(node.value)
            else:
                self._forget(target)

    def _forget(self, node: ast.AST) -> None:
        for one in ast.walk(node):
            if isinstance(one, ast.Name) and (isinstance(one.ctx, ast.Store) or isinstance(node, ast.Subscript)):
                self.names[one.id] = Unread(one.id)

    def _call(self, node: ast.Call) -> None:
        """Note a call of training. A call that changes a dictionary makes the dictionary `Unread`."""
        keywords = {keyword.arg for keyword in node.keywords}
        if _name_of(node.func).endswith("Trainer") and "overrides" in keywords:
            overrides = next(keyword.value for keyword in node.keywords if keyword.arg == "overrides")
            self.calls.append((node.lineno, self._unpacked(overrides)))
        if not isinstance(node.func, ast.Attribute):
            return
        owner = self.value(node.func.value)
        if node.func.attr in ("update", "pop", "setdefault") and isinstance(node.func.value, ast.Name):
            self.names[node.func.value.id] = Unread(node.func.value.id)
        is_model = isinstance(owner, _Model)
        if node.func.attr == "train" and (is_model or keywords & LIKELY_KEYS or (None in keywords and node.keywords)):
            if is_model and owner.maker != "YOLO":
                raise PythonError(f"line {node.lineno}: {owner.maker}: not supported. Use a detector of YOLO.")
            arguments = dict(owner.arguments) if is_model else {"model": Unread(ast.unparse(node.func.value))}
            if node.args:
                arguments["trainer"] = Unread(ast.unparse(node.args[0]))
            for keyword in node.keywords:
                is_pack = keyword.arg is None
                arguments |= self._unpacked(keyword.value) if is_pack else {keyword.arg: self.value(keyword.value)}
            self.calls.append((node.lineno, arguments))

    def _unpacked(self, node: ast.expr) -> dict[str, Any]:
        """The arguments of ``**node``."""
        value = self.value(node)
        is_known = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return value if is_known else {f"**{ast.unparse(node)}": Unread(ast.unparse(node))}

    def value(self, node: ast.expr) -> Any:
        """The value of an expression: a plain value, a `_Model`, or `Unread`."""
        unread = Unread(" ".join(ast.unparse(node).split()))
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, unread)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.value(node.operand)
            return -value if isinstance(value, int | float) else unread
        if isinstance(node, ast.List | ast.Tuple):
            values = [self.value(one) for one in node.elts]
            return unread if any(isinstance(one, Unread | _Model) for one in values) else values
        if isinstance(node, ast.Dict):
            keys = [key and self.value(key) for key in node.keys]  # None before ** in a dictionary
            is_known = all(isinstance(key, str) for key in keys)
            return dict(zip(keys, map(self.value, node.values), strict=True)) if is_known else unread
        return self._made(node, unread) if isinstance(node, ast.Call) else unread

    def _made(self, node: ast.Call, unread: Unread) -> Any:
        """The value of a call: of ``YOLO(...)``, of a method that returns the model, or of ``dict(...)``."""
        keywords = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg}
        name = _name_of(node.func)
        if name == "dict" and len(keywords) == len(node.keywords) and not node.args:
            return keywords
        if maker := self.makers.get(name):
            given = dict(zip(("model", "task", "verbose"), map(self.value, node.args), strict=False)) | keywords
            given.pop("verbose", None)
            return _Model(maker, {"model": "yolo26n.pt"} | given)
        if isinstance(node.func, ast.Attribute) and isinstance(owner := self.value(node.func.value), _Model):
            if node.func.attr == "load" and node.args:
                return _Model(owner.maker, owner.arguments | {"pretrained": self.value(node.args[0])})
            return owner if node.func.attr in ("to", "load", "cuda", "cpu") else unread
        return unread


def _is_condition(node: ast.AST) -> bool:
    """Whether a node is an ``if``, except ``if __name__ == "__main__"``."""
    return isinstance(node, ast.If) and "__name__" not in ast.unparse(node.test)


def _name_of(function: ast.expr) -> str:
    """``YOLO`` of ``YOLO`` and of ``ultralytics.YOLO``."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
