"""Writes docs/recipe.md, the reference of every section and key, from the schema: `python docs/generate.py`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rmtrain.recipe.explain import SectionType, entries, field_type, in_words

HEADER = """# The recipe

Every section and key. Generated from the schema by `make docs`; edit the docstrings in `rmtrain/recipe/` instead.

A recipe is one YAML file. Keys without a default must be given; `null` turns a key off. Any key can be set on the command
line too, as `section.key=value`, with list entries by index: `data.train.0.path=rows.jsonl`.
"""


def recipe_reference() -> str:
    """The text of docs/recipe.md."""
    places: dict[SectionType, list[str]] = {}
    for entry in entries():
        path = ".".join("N" if part == 0 else str(part) for part in entry.path)
        places.setdefault(entry.section, []).append(f"`{path}`" + (f" ({entry.kind})" if entry.kind else ""))
    sections = [chapter(section, ", ".join(paths)) for section, paths in places.items() if paths != ["``"]]
    return "\n".join([HEADER, *sections])


def chapter(section: SectionType, heading: str) -> str:
    """One section: its docstring, then a table of its keys."""
    rows = [row(name, field) for name, field in section.model_fields.items()]
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {heading}\n", f"{one_line(section.__doc__)}\n", *table, ""])


def row(name: str, field: FieldInfo) -> str:
    """One key as a row of the table."""
    cells = [f"`{name}`", in_words(field_type(field)), default(field), one_line(field.description)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def default(field: FieldInfo) -> str:
    """The default as it is written in YAML, or that the key must be given."""
    if field.is_required():
        return "required"
    value: Any = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def one_line(text: str | None) -> str:
    """A docstring as one paragraph."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(recipe_reference(), encoding="utf-8")
