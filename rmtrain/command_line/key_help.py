"""`rmtrain schema`: the JSON Schema of a recipe, or what one of its keys means."""

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.recipe.reference import look_up
from rmtrain.report.tables import Column, Row, Table


def explain_key(name: str) -> RenderableType:
    """Describe a section or a key of a recipe; raises RecipeError as `look_up`."""
    found = look_up(name)
    has_kinds = any(key.kinds for key in found.keys)
    columns = (Column("key", "text", "bold"), *([Column("of", "text")] if has_kinds else []), Column("value", "text"))
    rows = [
        Row(
            (
                key.name,
                *([", ".join(key.kinds)] if has_kinds else []),
                key.value,
                key.default.strip("`"),
                key.meaning.replace("`", ""),
            )
        )
        for key in found.keys
    ]
    table = Table(found.path, (*columns, Column("default", "text"), Column("meaning", "text")), rows)
    if found.example is None:
        return Group(Text(found.path, style="bold cyan"), Text(found.meaning.replace("`", "")), Text(), table)
    title, meaning = Text(found.path, style="bold cyan"), Text(found.meaning.replace("`", ""))
    example = f"rmtrain train RECIPE {found.example}"
    if len(found.keys) > 1:
        return Group(title, Text(), table, Text(), Text(f"example  {example}"))
    (key,) = found.keys
    lines = [("value", key.value), ("default", key.default.strip("`")), ("example", example)]
    lines += [("kinds", ", ".join(key.kinds))] if has_kinds else []
    values = Table(found.path, (Column("", "text", "cyan"), Column("", "text")), [Row(line) for line in lines])
    return Group(title, meaning, Text(), values)
