"""`rmtrain schema`: the JSON Schema of a recipe, for editors and other tools."""

import json

from pydantic.json_schema import GenerateJsonSchema

from rmtrain.recipe.schema import Recipe


def schema() -> str:
    """JSON Schema (draft 2020-12) of a recipe as text that ends in one newline; docstrings of fields are its descriptions.

    Checks between sections, such as that `heads` divides `hidden_size`, are not part of it.
    """
    described = Recipe.model_json_schema()
    described = {"$schema": GenerateJsonSchema.schema_dialect, **described, "title": "rmtrain recipe"}
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"
