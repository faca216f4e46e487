"""Strict YAML: text to plain data, with the place of every key and value.

Scalars follow the YAML 1.2 core schema, so `1e-5` is a number and `no`, `off`, `12:30` are text. What YAML versions or
people read in two ways is refused, never guessed: duplicate keys, tags, `True`, `None`, `.inf`. Values are built by kind
of node, never by tag, so no text can name a Python object.
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
_KEYS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool"))
"""Kinds of scalar that can be keys. A key is its text: `1` is `"1"`."""
_RESOLVERS = (
    (_TAG + "null", r"^(?:~|null|)$", ["~", "n", ""]),
    (_TAG + "bool", r"^(?:true|false)$", list("tf")),
    (_TAG + "int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (_TAG + "float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    (_REFUSED, r"^(?:True|TRUE|False|FALSE|Null|NULL|None|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("TFN-+.")),
)
_PLAIN_WORDS = (
    ("mapping values are not allowed", 'a second ": " in one line; quote the text, or begin a new line'),
    ("could not find expected ':'", 'expected ": " after a key'),
    ("expected <block end>", "the block above has not ended here; check the indentation and the quotes"),
    ("expected '<document start>'", "the recipe has ended above; check the indentation"),
    ("character '\\t'", "a tab; indent with spaces"),
    ("cannot start any token", "a value begins with a reserved character; put it in quotes"),
    ("undefined alias", "an alias (*name) without its anchor (&name)"),
    ("but found another document", "a second document begins; a recipe is one document"),
    ("end of stream", "a quote is never closed"),
    ("expected ',' or", "a bracket or brace is never closed, or a comma is missing"),
    ("'<stream end>'", "the text ends too early; a value, bracket or brace is missing"),
)


class Place(NamedTuple):
    """Where something was written. Places sort in reading order, the file (order 0) before the overrides (order 1, 2, ...)."""

    order: int
    line: int
    column: int
    text: str
    """How the place is named to the user: `recipes/mine.yaml:12:5`."""


class Problem(NamedTuple):
    """One thing that is wrong; `str` gives the line shown to the user."""

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        where = f"{dotted(self.path)}: " if self.path else ""
        return one_line(f"{self.place.text}  {where}{self.message}")


@dataclass
class Document:
    """A YAML text as plain data. `keys` and `values` place the key and the value of each path; a list item is its value.

    `data` means nothing when `readable` is false; `problems` then say why.
    """

    data: Any
    keys: dict[KeyPath, Place]
    values: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)
    readable: bool = True

    def key_place(self, path: KeyPath) -> Place:
        """Where the key at `path` was written, or the nearest section around it."""
        return _nearest(self.keys, path)

    def value_place(self, path: KeyPath) -> Place:
        """Where the value at `path` was written, or the nearest section around it."""
        return _nearest(self.values, path)


def dotted(path: KeyPath) -> str:
    """`data.train.0.path`, as overrides spell it; overlong keys are shortened."""
    return ".".join(shorten(str(part)) for part in path)


def shorten(text: str, length: int = 60) -> str:
    """At most `length` characters of `text`, secrets hidden before they could be cut beyond recognition."""
    text = redact(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def one_line(text: str) -> str:
    """`text` on one line that any terminal can print, without control characters and secrets."""
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return redact("".join(printable))


def read_yaml(path: Path) -> Document:
    """Read a file.

    Raises:
        RecipeError: it cannot be read, is no UTF-8 text, or is not well-formed YAML.
    """
    text = _decode(_read_bytes(path), str(path))
    document = parse_yaml(text, lambda line, column: Place(0, line, column, f"{path}:{line}:{column}"))
    if not document.readable:
        raise RecipeError(*map(str, document.problems))
    return document


def parse_yaml(text: str, place: Callable[[int, int], Place]) -> Document:
    """Read YAML text; `place` names a line and column, both from 1. Everything wrong is in `problems`, nothing is raised."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        position = _line_and_column(text, error.position)
        return _unreadable(place(*position), f"character {error.character:#04x} cannot stand in YAML; remove it")
    except yaml.MarkedYAMLError as error:
        return _unreadable(_at(place, error.problem_mark or error.context_mark), f"not well-formed YAML: {_plain_words(error)}")
    except (ValueError, OverflowError):  # PyYAML's scanner lets these escape on "\UFFFFFFFF" and endless version numbers
        mark = loader.get_mark() if loader else None
        return _unreadable(_at(place, mark), "not well-formed YAML: an escape that is no character")
    return _Builder(place, loader.tags).document(root)


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml`, and any YAML 1.1 or 1.2 reader, reads back to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130)


def _nearest(places: dict[KeyPath, Place], path: KeyPath) -> Place:
    while path not in places:
        path = path[:-1]
    return places[path]


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(one_line(f"{path}  no such file; expected a recipe in YAML")) from None
    except IsADirectoryError:
        raise RecipeError(one_line(f"{path}  is a directory; expected a recipe in YAML")) from None
    except OSError as error:
        raise RecipeError(one_line(f"{path}  cannot be read: {error.strerror}")) from None
    if len(content) > MAX_BYTES:
        raise RecipeError(one_line(f"{path}  expected a recipe of at most {MAX_BYTES // 1024} KiB; this file is larger"))
    return content


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(content[: error.start].decode("utf-8", "replace"), error.start)
        message = f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise RecipeError(one_line(f"{name}:{line}:{column}  {message}")) from None


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _unreadable(place: Place, message: str) -> Document:
    return Document(None, {}, {}, [Problem(place, (), message)], readable=False)


def _plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unknown"
    return next((words for sign, words in _PLAIN_WORDS if sign in problem), problem)


def _at(place: Callable[[int, int], Place], mark: yaml.Mark | None) -> Place:
    return place(mark.line + 1, mark.column + 1) if mark else place(1, 1)


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalar rules of this module; remembers the tags that were written, without following them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: dict[yaml.Node, str] = {}
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", self.get_mark())
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        if tag is not None and node is not None:
            self.tags[node] = tag
        self.depth -= 1
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
    """Turns nodes into plain data, expanding aliases up to a limit and noting places and problems on the way."""

    def __init__(self, place: Callable[[int, int], Place], tags: dict[yaml.Node, str]) -> None:
        self._place = place
        self._tags = tags
        self._open: set[yaml.Node] = set()
        self._count = 0
        self._document = Document(None, {}, {})

    def document(self, root: yaml.Node | None) -> Document:
        start = self._place(1, 1) if root is None else self._at(root)
        self._document.keys[()] = self._document.values[()] = start
        self._document.data = None if root is None else self._value(root, ())
        if self._count > MAX_VALUES:
            return _unreadable(start, f"more than {MAX_VALUES} values once aliases are expanded; write fewer aliases")
        return self._document

    def _at(self, node: yaml.Node) -> Place:
        return _at(self._place, node.start_mark)

    def _refuse(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self._document.problems.append(Problem(self._at(node), path, message))

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            return None
        if node in self._open:
            self._refuse(node, path, "an alias (*name) inside its own anchor (&name)")
            return None
        if node in self._tags:
            tag = self._tags[node].replace(_TAG, "!!")
            self._refuse(node, path, f"tags such as {shorten(tag)} are not followed; write the plain value")
        self._document.keys.setdefault(path, self._at(node))
        self._document.values[path] = self._at(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(node)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, path, "expected text as a key, got a list or mapping")
                continue
            key = self._text(key_node, path)
            if key_node in self._tags or key_node.tag not in _KEYS:
                self._refuse(key_node, (*path, key), "expected text as a key; put it in quotes")
            if key in mapping:
                self._refuse(key_node, (*path, key), _duplicate(self._document.keys[*path, key], self._at(key_node)))
                continue
            self._document.keys[*path, key] = self._at(key_node)
            mapping[key] = self._value(value_node, (*path, key))
            if value_node.start_mark.index == value_node.end_mark.index:  # nothing is written there
                self._document.values[*path, key] = self._at(key_node)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool":
            return text == "true"
        if node.tag == _TAG + "int":
            return self._number(node, path, _whole_number(text))
        if node.tag == _TAG + "float":
            return self._number(node, path, float(text))
        if node.tag == _REFUSED:
            self._refuse(node, path, _other_spelling(text))
        return self._text(node, path)

    def _text(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        text: str = node.value
        if any("\ud800" <= c <= "\udfff" for c in text):
            self._refuse(node, path, "half a surrogate pair is no character; write the character itself")
            return text.encode("utf-8", "replace").decode("utf-8")
        return text

    def _number(self, node: yaml.Node, path: KeyPath, number: float | None) -> float | None:
        if number is None or not math.isfinite(number):
            self._refuse(node, path, "the number is too large")
            return None
        return number


def _duplicate(first: Place, second: Place) -> str:
    lines = f", on line {first.line} and on line {second.line}" if second.line else ""
    return f"duplicate key{lines}; keep one"


def _whole_number(text: str) -> int | None:
    number = int(text, 0) if text[:2] in ("0o", "0x") else int(text[:30])
    return number if len(text) <= 30 and -(2**63) <= number < 2**63 else None


def _other_spelling(text: str) -> str:
    if text.lower() in ("null", "none"):
        return f'write null to turn it off, or "{text}" in quotes if it is text'
    if text.lower() in ("true", "false"):
        return f'write {text.lower()} in lower case, or "{text}" in quotes if it is text'
    return f"expected a finite number, got {text}"
