"""The model card, Markdown for the Hub: how to use a model, its data, evaluation, training and limits; `card.md` is the template."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from rmtrain.data.text.templates import edge_tokens
from rmtrain.data.waterfall import UNFIT
from rmtrain.files import expanded
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import PretrainedModel, Recipe
from rmtrain.recipe.yaml import write_yaml
from rmtrain.redact import redact_paths
from rmtrain.report.console import decimal, json_text, markdown_text, percent
from rmtrain.report.evaluation_view import interval, source_table
from rmtrain.report.tables import Column, Row, Table, with_total
from rmtrain.report.words import sentences

FOLDER = Path(__file__).parent
TAGS = ["reward-model", "rmtrain", "text-classification"]


def card_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Any],
    *,
    waterfall: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> str:
    """Return the card of the model that a recipe trained; `facts` are in its `rmtrain.json`, the other arguments those of `model_card`."""
    base = recipe.model.path if isinstance(recipe.model, PretrainedModel) and not Path(recipe.model.path).exists() else None
    sources = [source for source in (*recipe.data.train, *recipe.data.eval) if not expanded(source.path).exists()]
    return model_card(
        name=recipe.run.name,
        path=recipe.hub.id or recipe.run.name,
        base_model=base,
        adapted=recipe.lora is not None,
        datasets={source.title: source.path for source in sources},
        splits={source.title: source.split for source in sources if source.split is not None},
        waterfall=waterfall,
        evaluation=evaluation,
        recipe=dump_recipe(recipe),
        max_length=recipe.data.max_length,
        add_special_tokens=not edge_tokens(tokenizer).in_template,
        own_code=facts["code"] is not None,
        left_padding=facts["left_padding"],
        meanings=[_meaning(facts["objective"]["sources"][tag], tag) for tag in facts["objective"].get("sources", {})]
        or [_meaning(facts["objective"])],
        rewards=facts.get("rewards"),
        versions=versions,
    )


def _meaning(objective: Mapping[str, Any], source: str | None = None) -> str:
    """Return what a reward means, given the objective of a source, or of all, as in `rmtrain.json`."""
    scope = "" if source is None else f"As trained on {markdown_text(source)}: "
    match objective["type"]:
        case "regression":
            scale = f"`reward * {objective['std']:.6g} + {objective['mean']:.6g}`"
            return f"{scope}{scale} is the model's estimate of the score that the training data gives a response."
        case "binary":
            return f"{scope}`sigmoid(reward)` is the model's estimate of the probability that a response is right."
        case "function":
            return f"{scope}It was trained with a loss of its own, `{objective['path']}`, which says what the reward means."
        case _:
            return (
                f"{scope}Only the difference between two responses to the same prompt is meaningful: `sigmoid(reward_a - reward_b)` is "
                "the model's probability that response a is better."
            )


def model_card(
    *,
    name: str,
    path: str,
    base_model: str | None,
    adapted: bool,
    datasets: Mapping[str, str],
    splits: Mapping[str, str],
    waterfall: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    recipe: str,
    max_length: int,
    add_special_tokens: bool,
    own_code: bool,
    left_padding: bool,
    meanings: Sequence[str],
    rewards: Mapping[str, float] | None,
    versions: Mapping[str, str],
) -> str:
    """Return a whole `README.md`: front matter for the Hub, then text. It has no data rows, home directory or token.

    Args:
        path: argument of `from_pretrained`, such as `owner/name`.
        base_model: Hub id of the model that was trained; None: there is none, or it is not on the Hub.
        adapted: low-rank adapters were trained rather than all weights.
        datasets, splits: Hub ids of the sources on the Hub, and their splits, by tag.
        waterfall: rows read, dropped and kept of each training source; empty if unknown.
        evaluation: as `summarize` returns it for the final model; None: it was not evaluated.
        recipe: the resolved recipe, as YAML text.
        add_special_tokens: the tokenizer adds them, as those of encoders do; otherwise the template writes them.
        own_code: transformers has no class for the model, which brings its own.
        left_padding: padding on the left does not change rewards.
        meanings: sentences, in Markdown, that say what a reward means.
        rewards: number, mean and standard deviation of the rewards of all responses of the evaluation; None: it was not evaluated.
    """
    results = [
        EvalResult(
            task_type="preference_evaluation",
            task_name="Preference evaluation",
            dataset_type=datasets.get(source, source),
            dataset_name=source,
            dataset_split=splits.get(source),
            metric_name=name,
            metric_type=kind,
            metric_value=value,
        )
        for source, numbers in (evaluation["sources"] if evaluation else {}).items()
        for kind, value, name in (
            ("accuracy", numbers["accuracy"], f"accuracy, 95 % in {interval(numbers, 4)} of {numbers['n']:,}"),
            ("spearmanr", numbers["spearman"], f"Spearman's correlation of {numbers['targets']:,} rewards and targets"),
        )
        if value is not None
    ]
    metadata = ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "finetune",
        datasets=sorted(set(datasets.values())) or None,
        eval_results=results or None,
        library_name="transformers",
        metrics=sorted({result.metric_type for result in results}) or ["accuracy"],
        model_name=name,
        pipeline_tag="text-classification",
        tags=TAGS,
    )
    shareable = write_yaml(redact_paths(yaml.safe_load(recipe))).rstrip()
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"decimal": decimal, "markdown": markdown_text, "literal": json_text}
    return environment.get_template("card.md").render(
        metadata=metadata.to_yaml().strip(),
        name=name,
        path=path,
        base_model=base_model,
        adapted=adapted,
        add_special_tokens=add_special_tokens,
        own_code=own_code,
        left_padding=left_padding,
        meanings=meanings,
        rewards=rewards,
        waterfall=_data_table(waterfall).markdown() if waterfall else None,
        evaluation=evaluation,
        sources=source_table(evaluation, digits=4).markdown() if evaluation else None,
        words=sentences(evaluation) if evaluation else [],
        versions=versions,
        recipe=shareable,
        fence="`" * max(3, 1 + max((len(run) for run in re.findall("`+", shareable)), default=0)),
        max_length=max_length,
    )


def _data_table(waterfall: Mapping[str, Mapping[str, Any]]) -> Table:
    counted = with_total(waterfall)
    kinds = ("dropped", "added") if any(counts.get("added") for counts in counted.values()) else ("dropped",)
    rows = []
    for source, counts in counted.items():
        words = (
            ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.get(kind, {}).items()) or "none"
            for kind in kinds
        )
        lost = sum(count for reason, count in counts["dropped"].items() if reason != UNFIT)  # the source has no such row
        used = percent(counts["read"] - lost, counts["read"])
        rows.append(Row((source, f"{counts['read']:,}", *words, f"{counts['kept']:,}", used)))
    names = ("rows read", *kinds, "comparisons", "share of rows used")
    return Table("Data", (Column("source", "text"), *map(Column, names)), rows)
