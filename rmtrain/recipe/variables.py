"""Variables of the environment in a recipe: `${NAME}` in a text value stands for the value of NAME, `$${NAME}` for the text `${NAME}`."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from yaml.reader import Reader

from rmtrain.recipe.explain import show
from rmtrain.recipe.output_dir import OUTPUT_DIR, escape_braces
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.yaml import MAX_BYTES, Document, Problem, scalar, shorten
from rmtrain.redact import ADVICE, is_secret, names_secret

WRITTEN: tuple[KeyPath, ...] = (OUTPUT_DIR, ("data", "cache_dir"))
"""Keys of directories that are created."""
LONGEST = 2**12
"""Characters of the value of a variable."""
PER_RANK = frozenset(
    {
        *(
            "RANK",
            "LOCAL_RANK",
            "GROUP_RANK",
            "ROLE_RANK",
            "NODE_RANK",
            "SLURM_PROCID",
            "SLURM_LOCALID",
            "SLURM_NODEID",
            "PMI_RANK",
        ),
        *("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK"),
    }
)
"""Variables by which launchers tell processes apart."""

_DOLLARS = re.compile(r"(?<!\$)(\$+)\{(?:([A-Za-z_]\w*)\})?", re.ASCII)
_WHOLE = re.compile(r"\$\{[A-Za-z_]\w*\}", re.ASCII)
_BARE = re.compile(r"\$(\w+)")


def insert_variables(document: Document) -> dict[KeyPath, str]:
    """Replace the variables in all text values of a recipe, in place; what is wrong is added to its `problems`.

    A value that is one variable and nothing else becomes a number, true, false or null if YAML reads its content so. Content is never read
    as a list or a section, and the variables in it are not replaced.

    Returns:
        The content of each variable that is not text now, by path: where the key wants text, this is its value.
    """
    contents: dict[KeyPath, str] = {}
    size = 0
    for path, text in list(texts(document.data)):
        value: Any = text
        try:
            if "${" in text:
                value = with_variables(text, for_pattern=path == OUTPUT_DIR)
                size += len(value)
            if path in WRITTEN and (bare := _BARE.search(value)):
                raise ValueError(f"variables are written with braces, got {show(value)}; write ${{{shorten(bare[1])}}}")
            if _WHOLE.fullmatch(text):
                content, value = value, _typed(text, value)
                if not isinstance(value, str):
                    contents[path] = content
        except ValueError as error:
            document.problems.append(Problem(document.value_place(path), path, str(error)))
        if value is not text:
            put(document.data, path, value)
        if size > MAX_BYTES:
            message = f"with the variables up to here, the texts have more than {MAX_BYTES // 1024} KiB; write them out"
            document.problems.append(Problem(document.value_place(path), path, message))
            break
    return contents


def with_variables(text: str, for_pattern: bool = False) -> str:
    """Replace the variables in a text. `for_pattern`: braces in their values are escaped, so that they name no keys.

    Raises:
        ValueError: a variable that is not set, or that holds or may hold a secret; the message is one line, without its value.
    """

    def replaced(found: re.Match[str]) -> str:
        dollars, name = found[1], found[2]
        if len(dollars) > 1:
            return found[0][1:]
        if name is None:
            remedy = "write {run.name} for the value of a key" if for_pattern else "write $${ for text"
            raise ValueError(f"expected the name of a variable as in ${{NAME}}, got {show(text[found.start() :])}; {remedy}")
        value = _value(name)
        return escape_braces(value) if for_pattern else value

    return _DOLLARS.sub(replaced, text)


def escape_variables(data: Any) -> Any:
    """Return plain data in which each text is written such that a recipe reads it back, without variables."""
    if isinstance(data, dict):
        return {key: escape_variables(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [escape_variables(value) for value in data]
    return _DOLLARS.sub(r"$\g<0>", data) if isinstance(data, str) else data


def texts(data: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield every text value with its path. No recursion: the path of an override can be deeper than Python's stack."""
    todo: list[tuple[KeyPath, Any]] = [((), data)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            todo.extend(((*path, part), inner) for part, inner in parts)


def put(data: Any, path: KeyPath, value: Any) -> None:
    """Replace the value at a path that exists."""
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


def _value(name: str) -> str:
    value, shown = os.environ.get(name), shorten(name)
    if names_secret(name):
        raise ValueError(f"{shown} has the name of a secret and is not read; {ADVICE}")
    if name in PER_RANK:
        raise ValueError(f"{shown} differs between the processes of a run, which need the same recipe; use another variable")
    if value is None:
        raise ValueError(f"the environment variable {shown} is not set; set it, or write $${{{shown}}} for this text")
    if is_secret(value):
        raise ValueError(f"the value of {shown} looks like a password or token; {ADVICE}")
    if len(value) > LONGEST:
        raise ValueError(f"the value of {shown} has {len(value):,} characters; expected at most {LONGEST:,}")
    if Reader.NON_PRINTABLE.search(value):
        raise ValueError(f"the value of {shown} has characters that are not allowed in YAML; remove them")
    return value


def _typed(variable: str, content: str) -> Any:
    if not content:
        raise ValueError(
            f"the environment variable {shorten(variable[2:-1])} is empty; set it, or set it to null to turn this key off"
        )
    with suppress(ValueError):  # what YAML would refuse is text here
        return scalar(content)
    return content
