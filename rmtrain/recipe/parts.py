"""The files of a recipe: those that are named, and those that they extend, become one document with the place of each key.

A base is merged before the file that extends it, and a later file wins over earlier ones. Sections are merged key by key; everything else
replaces what was there, and so does a section of another kind.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.errors import RecipeError, missing
from rmtrain.recipe.explain import show
from rmtrain.recipe.output_dir import OUTPUT_DIR, escape_braces
from rmtrain.recipe.schema import EXTENDS
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.variables import escape_variables, with_variables
from rmtrain.recipe.yaml import MAX_VALUES, Document, Place, Problem, read_yaml
from rmtrain.redact import ADVICE, is_secret

RECIPE, MARKER = "recipe.yaml", "run.json"
"""The recipe in the directory of a run, and the file that marks such a directory."""
MAX_FILES = 16
"""Files of one recipe. The places of overrides have an order from here on."""


def read_parts(paths: Sequence[Path]) -> Document:
    """Read recipe files with the files that they extend, and merge them. The directory of a run stands for its recipe.

    The recipe of a run belongs to the directory it is in, which may have been moved: that is its `run.output_dir`.

    Raises:
        RecipeError: a file is missing, unreadable or no recipe, is named twice, or extends itself; one line for each problem.
    """
    parts = _Parts()
    parts.add([_Named(path, Place(0, 0, 0, str(path))) for path in paths], {})
    if parts.problems:
        raise RecipeError(*parts.problems)
    assert parts.merged is not None, "a recipe has a file"
    return parts.merged


def without_sections(document: Document) -> list[Problem]:
    """Return why a document is not a recipe, if so: it is not YAML, or not a mapping of sections."""
    if isinstance(document.data, dict):
        return []
    given = "nothing" if document.data is None else show(document.data)
    message = f"expected sections such as run, data and model, got {given}"
    return document.problems or [Problem(document.keys[()], (), message)]


def merge(base: Document, part: Document) -> Document:
    """Return the recipe of two documents, of which `part` wins; each value keeps the place where it was written."""
    replaced: set[KeyPath] = set()
    data = _merged(base.data, part.data, (), replaced)

    def kept(places: dict[KeyPath, Place]) -> dict[KeyPath, Place]:
        inside = (any(path[:length] in replaced for length in range(1, len(path) + 1)) for path in places)
        return {path: place for (path, place), is_inside in zip(places.items(), inside, strict=True) if not is_inside}

    keys, values = {**kept(base.keys), **part.keys}, {**kept(base.values), **part.values}
    return Document(data, keys, values, [*base.problems, *part.problems])


def _merged(base: Any, part: Any, path: KeyPath, replaced: set[KeyPath]) -> Any:
    are_sections = isinstance(base, dict) and isinstance(part, dict)
    if path and (not are_sections or not part or _changes_kind(path, base, part)):
        replaced.add(path)
        return part
    common = {key: _merged(base[key], part[key], (*path, key), replaced) for key in base if key in part}
    return {**base, **part, **common}


def _changes_kind(path: KeyPath, base: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Return whether a section names another kind than the one that it would be merged into: their keys do not fit together."""
    if path == ("model",):
        return ("scratch" in part and "path" in base) or ("path" in part and "scratch" in base)
    if path in (("objective",), ("objective", "others")) or path[:-1] == ("objective", "sources"):
        return "type" in part and part["type"] != base.get("type", "bradley_terry")
    return False


class _Named(NamedTuple):
    """A file, and the place that names it; `key` is empty for the command line."""

    file: Path
    place: Place
    key: KeyPath = ()

    def problem(self, message: str) -> str:
        """Return a problem with the file; on the command line, its place is the file itself."""
        return str(Problem(self.place, self.key, f"{self.file}: {message}" if self.key else message))


class _Parts:
    """Reads files, each once, and merges them in order."""

    def __init__(self) -> None:
        self.merged: Document | None = None
        self.problems: list[str] = []
        self._count = 0
        self._done: set[str] = set()

    def add(self, named: Sequence[_Named], chain: Mapping[str, Path]) -> None:
        """Add the files that one file, or the command line, names, in this order.

        chain: the files that lead here, each of which extends the next one, by resolved path.
        """
        earlier = set(self._done)
        for each in named:
            file = each.file / RECIPE if os.path.isfile(each.file / MARKER) else each.file
            if each.key and not os.path.isfile(file):  # to read from a pipe or a terminal could wait for ever
                self.problems.append(str(Problem(each.place, each.key, missing(file))))
                continue
            identity = os.path.realpath(file)
            if identity in chain:
                circle = [*chain.values(), file][list(chain).index(identity) :]
                self.problems.append(each.problem(f"is circular, {' -> '.join(map(str, circle))}; remove one `extends`"))
            elif identity not in self._done:
                self._add(each._replace(file=file), {**chain, identity: file})
                self._done.add(identity)
            elif identity not in earlier:
                self.problems.append(each.problem("is already part of the files before it; name it once, before them"))

    def _add(self, named: _Named, chain: Mapping[str, Path]) -> None:
        if self._count == MAX_FILES:
            self.problems.append(named.problem(f"a recipe has at most {MAX_FILES} files; put some of them together"))
            return
        self._count += 1
        try:
            document = read_yaml(named.file, order=self._count - 1)
        except RecipeError as error:
            self.problems += error.problems
            return
        except OSError as error:
            searched = "" if named.file.is_absolute() else f" in {Path.cwd()}"
            self.problems.append(named.problem(f"cannot read the recipe: {error.strerror}{searched}"))
            return
        if problems := without_sections(document):
            self.problems += map(str, problems)
            return
        self.add(self._bases(document, named.file), chain)
        _place_run(document, named.file)
        self.merged = document if self.merged is None else merge(self.merged, document)
        if len(self.merged.values) > MAX_VALUES:
            self.problems.append(
                named.problem(f"the files up to here have more than {MAX_VALUES} values; leave some of them out")
            )

    def _bases(self, document: Document, file: Path) -> list[_Named]:
        """Remove `extends` from a document, and return the files it names, relative to its own."""
        if EXTENDS not in document.data:
            return []
        value = document.data.pop(EXTENDS)
        keyed = [((EXTENDS, n), entry) for n, entry in enumerate(value)] if isinstance(value, list) else [((EXTENDS,), value)]
        bases = []
        for key, entry in keyed:
            place = document.value_place(key)
            try:
                if not isinstance(entry, str) or not entry:
                    raise ValueError(f"expected the path of a recipe, or a list of paths, got {show(entry)}")
                path = with_variables(entry)
                if is_secret(path):
                    raise ValueError(f"looks like a password or token; {ADVICE}")
                bases.append(_Named(file.parent / os.path.expanduser(path), place, key))
            except ValueError as error:
                self.problems.append(str(Problem(place, key, str(error))))
        return bases


def _place_run(document: Document, file: Path) -> None:
    """Set `run.output_dir` of the recipe of a run to the directory it is in."""
    run = document.data.get(OUTPUT_DIR[0])
    if isinstance(run, dict) and file.name == RECIPE and os.path.isfile(file.parent / MARKER):
        run[OUTPUT_DIR[1]] = escape_variables(escape_braces(str(file.parent.absolute())))
