"""The tested entries of public datasets: those of docs/DATASETS.md, from the file that `make docs` writes of it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rmtrain.recipe.schema import Source
from rmtrain.recipe.yaml import read_yaml

FILE = Path(__file__).with_name("datasets.yaml")
CONFIGS = ("tag", "data_dir", "name")
"""Keys by which the entries of one dataset differ."""

Entry = dict[str, Any]
"""A source as a recipe has it, before it is validated."""


def as_source(entry: Mapping[str, Any]) -> Source:
    """Return the source of an entry; raises pydantic's ValidationError."""
    return _adapter().validate_python(dict(entry))


@cache
def _adapter() -> TypeAdapter[Source]:
    return TypeAdapter(Source)  # takes as long as some validations


@cache
def entries() -> tuple[Entry, ...]:
    """Return the entry of each documented dataset, in the order of the page."""
    return tuple(read_yaml(FILE).data)


def find_entries(path: str, config: str | None = None) -> list[Entry]:
    """Return the entries of a dataset on the Hub, ignoring case, the best first; none where it is not documented.

    `config` is the `name`, `data_dir` or `tag` of one of them; another one takes the place of theirs. Without it, entries that have none
    come first.
    """
    found = [entry for entry in entries() if "/" in path and entry["path"].lower() == path.lower()]
    if config is None:
        return sorted(found, key=lambda entry: any(key in entry for key in ("name", "data_dir")))
    named = [entry for entry in found if config.lower() in {str(entry[key]).lower() for key in CONFIGS if key in entry}]
    if named:
        return named
    placed = [(entry, key) for entry in found for key in ("data_dir", "name") if key in entry][:1]
    return [{name: value for name, value in entry.items() if name != "tag"} | {key: config} for entry, key in placed]
