"""What the numbers of an evaluation on pairs depend on beside the model."""

from importlib.metadata import version
from typing import Any

from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.engine.run import computes_in_bfloat16
from rmtrain.evaluation.settings import TIES, digest_of
from rmtrain.recipe.schema import Recipe

PACKAGES = ("rmtrain", "torch", "transformers")


def pair_settings(model: str, recipe: Recipe, data: TokenizedData, template_sha256: str | None) -> dict[str, Any]:
    """JSON-ready settings; rows are the same where their prompts and responses are, whatever the tokenizer.

    Args:
        model: what was evaluated.
        recipe: what of.
        data: the comparisons.
        template_sha256: of the chat template they were written with.
    """
    counts = data.waterfall.sources.values()
    return {
        "model": model,
        "dtype": "bfloat16" if computes_in_bfloat16(recipe.training.precision) else "float32",
        "max_length": recipe.data.max_length,
        "overlong": recipe.data.overlong,
        "template_sha256": template_sha256,
        "ties": TIES,
        "rows": len(data),
        "rows_dropped": sum(count.read - count.kept - count.gathered for count in counts),
        "rows_sha256": digest_of([data.prompt_hashes.tolist(), data.response_hashes.tolist()]),
        "versions": {name: version(name) for name in PACKAGES},
    }
