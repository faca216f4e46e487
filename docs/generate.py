"""Writes docs/recipe.md, the reference of every section and key, from the schema: `python docs/generate.py`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rmtrain.recipe.explain import either, entries
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import Section

HEADER = """# The recipe

Every section and key. Generated from the schema by `make docs`; edit the docstrings in `rmtrain/recipe/` instead.

A recipe is a YAML file. Keys marked `required` have no default. `null` turns a key off, unless its text says otherwise. Any key can
also be set on the command line, as `section.key=value`, with list entries by index: `data.train.0.path=rows.jsonl`.

## Share parts between recipes

```yaml
extends: base.yaml                       # or a list, such as [base.yaml, parts/lora.yaml]; relative to this file
optimizer: {lr: 3.0e-6}                  # all other keys of the optimizer are those of base.yaml
data: {train: [{path: mine.jsonl}]}      # a list replaces the list of the base
lora: null                               # and null takes a section away
```

`extends` stands at the top level. A base may extend others; of several, later ones win, and the file over its bases. A file that is
extended twice counts once, at its first place. `rmtrain train base.yaml mine.yaml optimizer.lr=1e-5` merges files in the same way, without
`extends`, and so do `preprocess`, `inspect`, `eval` and `rmtrain.load_recipe(["base.yaml", "mine.yaml"])`. The rules:

- Sections and other mappings are merged key by key. Everything else replaces what the base has: lists, values, `null`, and an empty `{}`.
- A section of another kind replaces the whole section. A model with `scratch` is of another kind than one with `path`, and so is an
  objective with another `type` (the default is `bradley_terry`).
- Functions of your own (`prepare`, `objective.path`) are read next to the file that names them. All other paths are relative to the current
  directory.
- Errors have the place in the file where the value was written. `recipe.yaml` in the run is whole and needs none of the files.
- A recipe has at most 16 files.

## Use variables of the environment

`${NAME}` in a text value stands for the value of a variable of the environment: `data.cache_dir: "${SCRATCH}/cache"`. A value that is
only `${NAME}` may also become a number, `true`, `false` or `null`, where the key takes one: `lr: ${LR}`. Between `{ }` and `[ ]`, put it in
quotes: `optimizer: {lr: "${LR}"}`; on the command line, in single quotes: `'run.name=${SLURM_JOB_ID}'`. A variable that is not set is an
error, and so is one that is empty where it is the whole value. Its content is never read as a list, a section or another variable.
Variables named like a secret (`HF_TOKEN`, `..._KEY`, `...PASSWORD`) and contents that look like one are refused. For the text itself, write
`$${NAME}`.

## Name the directory of a run by its keys

`run.output_dir: "runs/{run.name}-lr{optimizer.lr}-s{run.seed}"` becomes `runs/hh-lr3e-6-s1`: in this key, `{section.key}` stands for the
value of a key in the final recipe, after overrides and defaults. A number is written the shorter way (`1e-4`, `0.05`); of a text only
letters, digits and `_.+-` stay, so that `{model.path}` is `Qwen-Qwen3-0.6B`. Write `{{` and `}}` for braces of the path itself.
"""
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
PATTERNS = {
    r"^[\w.-]+$": "text of letters, digits, `_`, `.` and `-`",
    r"^[\w.-]+/[\w.-]+$": "text such as owner/name",
    r"^[A-Za-z_]\w*:[A-Za-z_]\w*$": "text such as module:function",
}
SECTIONS: dict[str, Any] = Recipe.model_json_schema()["$defs"]


def recipe_reference() -> str:
    """The text of docs/recipe.md."""
    places: dict[type[Section], list[str]] = {}
    for entry in entries():
        path = ".".join("N" if part == 0 else str(part) for part in entry.path)
        places.setdefault(entry.section, []).append(f"`{path}`" + (f" ({entry.kind})" if entry.kind else ""))
    sections = [chapter(section, ", ".join(dict.fromkeys(paths))) for section, paths in places.items() if paths != ["``"]]
    return "\n".join([HEADER, *sections])


def chapter(section: type[Section], heading: str) -> str:
    """One section: its docstring, then a table of its keys."""
    schemas = SECTIONS[section.__name__]["properties"]
    rows = [row(name, field, schemas[name]) for name, field in section.model_fields.items()]
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {heading}\n", f"{one_line(section.__doc__)}\n", *table, ""])


def row(name: str, field: FieldInfo, schema: dict[str, Any]) -> str:
    """One key as a row of the table."""
    cells = [f"`{name}`", in_words(schema), default(field, schema), one_line(field.description)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def in_words(schema: dict[str, Any]) -> str:
    """The JSON schema of a value in plain words: `a whole number above 0, or null`."""
    if schema.get("$ref", "").endswith("/JsonValue"):
        return "any value"
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return ", or ".join(dict.fromkeys(map(in_words, options)))
    if "enum" in schema or "const" in schema:
        return either(schema.get("enum") or [schema["const"]])
    match schema.get("type", "object"):
        case "string" if "pattern" in schema:
            return PATTERNS.get(schema["pattern"], f"text that matches {schema['pattern']}")
        case "string":
            return "non-empty text" if schema.get("minLength") else "text"
        case "array":
            items = schema.get("prefixItems") or [schema["items"]]
            size = f" of {len(items)}" if "prefixItems" in schema else ""
            each = " and ".join(dict.fromkeys(map(in_words, items)))
            return f"a {'non-empty ' if schema.get('minItems') == 1 else ''}list{size}, each {each}"
        case "object" if schema.get("additionalProperties"):
            names = f" from {in_words(schema['propertyNames'])}" if "propertyNames" in schema else ""
            return f"a mapping{names} to {in_words(schema['additionalProperties'])}"
        case "integer" | "number" as type_:
            bounds = " and ".join(f"{words} {schema[bound]}" for bound, words in BOUNDS.items() if bound in schema)
            return f"{'a whole number' if type_ == 'integer' else 'a number'} {bounds}".strip()
        case type_:
            return {"boolean": "true or false", "null": "null"}.get(type_, "a section")


def default(field: FieldInfo, schema: dict[str, Any]) -> str:
    """The default as it is written in YAML, or that the key is required."""
    if field.is_required():
        return "required"
    value: Any = schema["default"] if field.default_factory else field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def one_line(text: str | None) -> str:
    """A docstring as one paragraph."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(recipe_reference(), encoding="utf-8")
