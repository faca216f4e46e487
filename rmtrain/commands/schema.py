"""`rmtrain schema`: the JSON Schema of a recipe, for editors and other tools."""

import json

from pydantic.json_schema import GenerateJsonSchema

from rmtrain.recipe.schema import Recipe


def schema() -> str:
    """Return the JSON Schema (draft 2020-12) of a recipe as text with one newline at its end; docstrings of fields are the descriptions.

    Checks between keys, such as that `heads` divides `hidden_size`, are not part of it.
    """
    document = {"$schema": GenerateJsonSchema.schema_dialect, **Recipe.model_json_schema(), "title": "rmtrain recipe"}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
