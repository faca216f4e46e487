"""The model card, Markdown for the Hub: how to use a model, its data, evaluation, training and limits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedTokenizerBase

from rmtrain.data.text.templates import edge_tokens
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import PretrainedModel, Recipe
from rmtrain.recipe.yaml import write_yaml
from rmtrain.redact import redact_paths
from rmtrain.report.console import decimal, percent
from rmtrain.report.evaluation_view import interval, source_table
from rmtrain.report.tables import Column, Row, Table, with_total

TAGS = ["reward-model", "rmtrain", "text-classification"]

VLLM_SNIPPET = """\
from vllm import LLM

llm = LLM("{path}", runner="pooling")
prompts = [{{"prompt_token_ids": tokenizer(text, add_special_tokens={add_special_tokens})["input_ids"]}} for text in texts]
print([output.outputs.probs[0] for output in llm.classify(prompts)])
"""
SNIPPET = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = "{path}"
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()

question = {{"role": "user", "content": "How many legs has a spider?"}}
conversations = [
    [question, {{"role": "assistant", "content": "A spider has eight legs."}}],
    [question, {{"role": "assistant", "content": "Six."}}],
]
texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
batch = tokenizer(texts, add_special_tokens={add_special_tokens}, padding=True, return_tensors="pt")
with torch.no_grad():
    rewards = model(**batch).logits[:, 0]
print(rewards)
"""


def card_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    waterfall: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> str:
    """Return the card of the model that a recipe trained; the other arguments are those of `model_card`."""
    base = recipe.model.path if isinstance(recipe.model, PretrainedModel) and not Path(recipe.model.path).exists() else None
    sources = [source for source in (*recipe.data.train, *recipe.data.eval) if not Path(source.path).expanduser().exists()]
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
        versions=versions,
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
    """
    results = [
        EvalResult(
            task_type="preference_evaluation",
            task_name="Preference evaluation",
            dataset_type=datasets.get(source, source),
            dataset_name=source,
            dataset_split=splits.get(source),
            metric_name=f"accuracy, 95 % in {interval(numbers, 4)} of {numbers['n']:,}",
            metric_type="accuracy",
            metric_value=numbers["accuracy"],
        )
        for source, numbers in (evaluation["sources"] if evaluation else {}).items()
        if numbers["accuracy"] is not None
    ]
    metadata = ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "finetune",
        datasets=sorted(set(datasets.values())) or None,
        eval_results=results or None,
        library_name="transformers",
        metrics=["accuracy"],
        model_name=name,
        pipeline_tag="text-classification",
        tags=TAGS,
    )
    origin = f"`{base_model}`" if base_model else "a model that is not on the Hub"
    sections = [
        f"# {name}",
        "A reward model: it reads a conversation and gives its last response one number, greater for better. "
        f"Trained from {origin} on comparisons of responses with rmtrain"
        f"{', by low-rank adapters that are merged into these weights' if adapted else ''}.",
        f"## Use\n\n{_use(path, add_special_tokens)}",
        f"## Data\n\n{_data(waterfall)}",
        f"## Evaluation\n\n{_evaluation(evaluation)}",
        f"## Training\n\n{_training(recipe, versions)}",
        f"## Limits\n\n{_limits(max_length, evaluation)}",
    ]
    return f"---\n{metadata.to_yaml().strip()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _use(path: str, add_special_tokens: bool) -> str:
    position, special_tokens = (
        "the last token",
        "The chat template writes every special token itself, so none is added when its text is encoded.",
    )
    if add_special_tokens:
        position = "the score head of the encoder"
        special_tokens = "The tokenizer adds the special tokens around the text of the chat template."
    return (
        f"The reward is the raw logit at {position}: no sigmoid, no softmax. Only differences between responses to the same prompt "
        "have a meaning; the probability that one is better than another is `sigmoid(reward_a - reward_b)`. "
        f"{special_tokens}\n\n{_fenced(SNIPPET.format(path=path, add_special_tokens=add_special_tokens), 'python')}\n\n"
        "With vLLM, for the same `tokenizer` and `texts`; `problem_type: regression` in `config.json` makes it skip the sigmoid, and "
        "older versions need `PoolingParams(use_activation=False)`:\n\n"
        f"{_fenced(VLLM_SNIPPET.format(path=path, add_special_tokens=add_special_tokens), 'python')}"
    )


def _data(waterfall: Mapping[str, Mapping[str, Any]]) -> str:
    if not waterfall:
        return "The recipe below names the data."
    names = ("rows read", "dropped", "comparisons", "share of rows used")
    rows = []
    for source, counts in with_total(waterfall).items():
        dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts["dropped"].items())
        used = percent(counts["kept"] + counts["gathered"], counts["read"])
        rows.append(Row((source, f"{counts['read']:,}", dropped or "none", f"{counts['kept']:,}", used)))
    return Table("Data", (Column("source", "text"), *map(Column, names)), rows).markdown()


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This model was not evaluated."
    lines = [f"{key.replace('_', ' ')}: {evaluation['rules'][key]}" for key in ("accuracy", "longer_wins", "loss")]
    if evaluation["accuracy"] is not None:
        chosen, rejected = (
            f"{decimal(evaluation['rewards'][side]['mean'], 3)} ± {decimal(evaluation['rewards'][side]['std'], 3)}"
            for side in ("winners", "losers")
        )
        lines += [
            f"rewards, mean and standard deviation: chosen {chosen}, rejected {rejected}",
            f"calibration error of sigmoid(margin): {decimal(evaluation['calibration_error'], 3)}",
        ]
    if evaluation["accuracy"] is not None and evaluation["longer_wins"] is not None:
        by_length = evaluation["accuracy_by_length"]
        longer, shorter = (decimal(by_length[key]["accuracy"], 3) for key in ("winner_longer", "winner_shorter"))
        lines.append(
            f"length: accuracy {longer} where the preferred response is longer and {shorter} where it is shorter; rank correlation of "
            f"reward and length within a prompt {decimal(evaluation['spearman_length_within'], 3)}"
        )
    return source_table(evaluation, digits=4).markdown() + "\n\n" + "\n".join(f"- {line}." for line in lines)


def _training(recipe: str, versions: Mapping[str, str]) -> str:
    software = ", ".join(f"{package} {version}" for package, version in versions.items())
    shareable = write_yaml(redact_paths(yaml.safe_load(recipe)))
    return f"`rmtrain train recipe.yaml` with this recipe, and {software}:\n\n" + _fenced(shareable, "yaml")


def _limits(max_length: int, evaluation: Mapping[str, Any] | None) -> str:
    limits = [
        "A reward predicts which response the people or models behind the training data would prefer; it repeats their errors and tastes.",
        f"The model was trained on conversations of at most {max_length:,} tokens, end token included, and has seen no longer ones.",
        "Rewards for different prompts, and rewards of different models, are not on one scale.",
        "A policy trained against it will exploit its errors: watch length and format, and use a second judge.",
    ]
    warnings = evaluation["warnings"] if evaluation else []
    return "\n".join(f"- {line}" for line in [*limits, *(f"Warning of its evaluation: {warning}." for warning in warnings)])


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
