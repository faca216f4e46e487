"""Strict YAML: text to plain data, with the place of every key and value.

Scalars follow the YAML 1.2 core schema, so `1e-5` is a number and `no`, `off`, `12:30` are text. Whatever YAML versions or people read in
two ways is refused, never guessed: duplicate keys, tags, `True`, `None`, `.inf`. Values are built by kind of node, never by tag, so no text
can name a Python object.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rmtrain.errors import RecipeError
from rmtrain.recipe.section import KeyPath
from rmtrain.redact import redact

MAX_BYTES = 2**17
MAX_DEPTH = 40
MAX_VALUES = 20_000

_TAG = "tag:yaml.org,2002:"
_REFUSED = "tag:rmtrain,2026:refused"
_RESOLVERS = (
    (_TAG + "null", r"^(?:~|null|)$", ["~", "n", ""]),
    (_TAG + "bool", r"^(?:true|false)$", list("tf")),
    (_TAG + "int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (_TAG + "float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    (_REFUSED, r"^(?:True|TRUE|False|FALSE|Null|NULL|None|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("TFN-+.")),
)


class Place(NamedTuple):
    """Where something was written. Places sort in reading order: the files (order 0, 1, ...), then the overrides."""

    order: int
    line: int
    column: int
    text: str
    """The place as shown to the user: `recipes/mine.yaml:12:5`."""
    directory: Path | None = None
    """The directory of the file, where the functions that it names are read."""


class Problem(NamedTuple):
    """One mistake in a recipe; `str` returns the line for the user."""

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        where = f"{dotted(self.path)}: " if self.path else ""
        return one_line(f"{self.place.text}  {where}{self.message}")


@dataclass
class Document:
    """A YAML text as plain data. `keys` and `values` place the key and the value of each path; a list item has the same place in both.

    If the text is not well-formed, `data` is None and `problems` has one entry.
    """

    data: Any
    keys: dict[KeyPath, Place]
    values: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)

    def key_place(self, path: KeyPath) -> Place:
        """Return where the key at `path` was written, or else the nearest section around it."""
        return _nearest(self.keys, path)

    def value_place(self, path: KeyPath) -> Place:
        """Return where the value at `path` was written, or else the nearest section around it."""
        return _nearest(self.values, path)


def _nearest(places: dict[KeyPath, Place], path: KeyPath) -> Place:
    while path not in places:
        path = path[:-1]
    return places[path]


def dotted(path: KeyPath) -> str:
    """Return a path as overrides spell it, such as `data.train.0.path`; long keys are shortened."""
    return ".".join(shorten(str(part)) for part in path)


def shorten(text: str, length: int = 60) -> str:
    """Return at most `length` characters of `text`; secrets are hidden first, since half a secret is not recognised as one."""
    text = redact(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def one_line(text: str) -> str:
    """Return `text` as one line that any terminal can print, without control characters and secrets."""
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return redact("".join(printable))


def read_yaml(path: Path, order: int = 0) -> Document:
    """Read a YAML file; `order` is that of its places.

    Raises:
        RecipeError: the file is too large, or is not UTF-8 text. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecipeError(one_line(f"{path}  expected a recipe of at most {MAX_BYTES // 1024} KiB; this file is larger"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(content[: error.start].decode("utf-8", "replace"))
        message = f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise RecipeError(one_line(f"{path}:{line}:{column}  {message}")) from None
    return parse_yaml(text, lambda line, column: Place(order, line, column, f"{path}:{line}:{column}", path.parent))


def parse_yaml(text: str, place: Callable[[int, int], Place]) -> Document:
    """Read YAML text; nothing is raised, all mistakes are in `problems` of the document. `place` gets a line and a column from 1."""
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, {(): place(1, 1)}, {(): place(1, 1)})
        builder = _Builder(place)
        builder.document.data = builder.value(root, ())
        return builder.document
    except yaml.reader.ReaderError as error:
        at = _line_and_column(text[: error.position])
        message = f"character {error.character:#04x} is not allowed in YAML; remove it"
    except yaml.MarkedYAMLError as error:
        at = _mark(error.problem_mark or error.context_mark)
        message = f"not valid YAML: {', '.join(filter(None, (error.context, error.problem)))}"
        if message.endswith("but got '{'"):  # within braces or brackets, `runs/{run.name}` and `${NAME}` end at their own brace
            message += "; put text with braces in quotes"
    except RecursionError:
        at = _mark(loader.get_mark() if loader else None)
        message = f"not valid YAML: nested more than {MAX_DEPTH} levels deep"
    except (ValueError, OverflowError):  # PyYAML's scanner does not catch these: "\UFFFFFFFF", version numbers of 5000 digits
        at = _mark(loader.get_mark() if loader else None)
        message = "not valid YAML: an escape or version number is too large"
    start = place(*at)
    return Document(None, {(): start}, {(): start}, [Problem(start, (), message)])


def write_yaml(data: Any) -> str:
    """Return plain data as YAML that `parse_yaml`, and any YAML 1.1 or 1.2 reader, reads back to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130)


def write_value(data: Any) -> str:
    """Return plain data as YAML in one line, such as `{path: rows.jsonl, split: train}`; read back as that of `write_yaml`."""
    text = yaml.dump([data], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.strip()[1:-1]


def _line_and_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _mark(mark: yaml.Mark | None) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalar rules of this module, and refuses tags."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = shorten(tag.replace(_TAG, "!!"))
            raise yaml.composer.ComposerError(None, None, f"tag {shown} is not supported; write a plain value", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or the rules of this module would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    odd_breaks = any(c in text for c in "\r\x85\u2028\u2029")  # PyYAML loses them in other styles
    return dumper.represent_scalar(_TAG + "str", text, style='"' if odd_breaks else "|" if "\n" in text else None)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


class _Builder:
    """Turns nodes into a document.

    An alias is the node of its anchor again, so a few lines can stand for billions of values; depth and number of values are limited.
    """

    def __init__(self, place: Callable[[int, int], Place]) -> None:
        self._place = place
        self._count = 0
        self.document = Document(None, {}, {})

    def _at(self, node: yaml.Node) -> Place:
        return self._place(*_mark(node.start_mark))

    def _refuse(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.document.problems.append(Problem(self._at(node), path, message))

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the data of a node at `path`; its places and problems are added to the document."""
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:
            limit = f"nested more than {MAX_DEPTH} levels deep" if len(path) > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise yaml.composer.ComposerError(None, None, f"{limit}, counting aliases", node.start_mark)
        self.document.keys.setdefault(path, self._at(node))
        self.document.values[path] = self._at(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, path, "expected text as a key, got a list or mapping")
                continue
            key = str(key_node.value)  # a key is its text: `1` is "1"
            if key_node.tag in (_TAG + "null", _REFUSED):
                self._refuse(key_node, (*path, key), "expected text as a key; put it in quotes")
            if key in mapping:
                first, second = self.document.keys[*path, key], self._at(key_node)
                lines = f" on lines {first.line} and {second.line}" if second.line else ""
                self._refuse(key_node, (*path, key), f"duplicate key{lines}; keep one")
                continue
            self.document.keys[*path, key] = self._at(key_node)
            mapping[key] = self.value(value_node, (*path, key))
            if value_node.start_mark.index == value_node.end_mark.index:  # an empty value: show its key
                self.document.values[*path, key] = self._at(key_node)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag == _TAG + "str":
            return node.value
        try:
            return scalar(node.value)
        except ValueError as error:
            self._refuse(node, path, str(error))
            return node.value


def scalar(text: str) -> Any:
    """Return the value of a plain scalar.

    Raises:
        ValueError: a number outside 64 bits, or a spelling that YAML versions or people read in two ways; the message is one line.
    """
    kind = next((tag for tag, pattern, _ in _RESOLVERS if re.fullmatch(pattern, text)), _TAG + "str")
    match kind.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text == "true"
        case "int" | "float":
            number = _number(text)
            if number is None:
                raise ValueError("number too large")
            return number
        case "str":
            return text
    raise ValueError(_other_spelling(text))


def _number(text: str) -> int | float | None:
    """Return the number, or None outside 64 bits. Digits are counted first, since Python refuses to convert thousands of them."""
    if text[:2] in ("0o", "0x") or re.fullmatch("[-+]?[0-9]+", text):
        whole = int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) <= 30 else None
        return whole if whole is not None and -(2**63) <= whole < 2**63 else None
    number = float(text)
    return number if math.isfinite(number) else None


def _other_spelling(text: str) -> str:
    if text.lower() in ("null", "none"):
        return f'write null to turn it off, or "{text}" in quotes if it is text'
    if text.lower() in ("true", "false"):
        return f'write {text.lower()} in lower case, or "{text}" in quotes if it is text'
    return f"expected a finite number, got {text}"
