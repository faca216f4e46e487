"""The model card: what a model was made from, how good it is, and how to use it, as Markdown for the Hub."""

import re
from collections.abc import Mapping, Sequence
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
from rmtrain.report.tables import interval, total

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
    """A whole `README.md`: front matter that the Hub reads, then text. It holds no data rows, home directory or token.

    Args:
        name: of the run.
        path: what a user gives to `from_pretrained`, such as `owner/name`.
        base_model: Hub id of the model that was trained; None: there is none, or it is not on the Hub.
        adapted: whether low-rank adapters were trained rather than all weights.
        datasets: Hub ids of those sources, by tag, that are on the Hub.
        splits: of those datasets, by tag.
        waterfall: rows read, dropped and kept of each training source; empty: they are not known any more.
        evaluation: what `summarize` returned for the final model; None: it was not evaluated.
        recipe: the resolved recipe, as YAML text.
        max_length: longest response with its prompt that was trained on, in tokens.
        add_special_tokens: whether the tokenizer adds them to a rendered text, as those of encoders do; otherwise its template writes them.
        versions: of the software, by package name.
    """
    sections = [
        f"# {name}",
        _introduction(base_model, adapted),
        "## Use\n\n" + _use(path, add_special_tokens),
        "## Data\n\n" + _data_table(waterfall),
        "## Evaluation\n\n" + _evaluation(evaluation),
        "## Training\n\n" + _training(recipe, versions),
        "## Limits\n\n" + _limits(max_length, evaluation),
    ]
    front_matter = _metadata(name, base_model, datasets, splits, evaluation).to_yaml().strip()
    return f"---\n{front_matter}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    name: str,
    base_model: str | None,
    datasets: Mapping[str, str],
    splits: Mapping[str, str],
    evaluation: Mapping[str, Any] | None,
) -> ModelCardData:
    results = [
        EvalResult(
            task_type="preference_evaluation",
            task_name="Preference evaluation",
            dataset_type=datasets.get(source, source),
            dataset_name=source,
            dataset_split=splits.get(source),
            metric_name=f"accuracy, 95 % in {interval(numbers)} of {numbers['n']:,}",
            metric_type="accuracy",
            metric_value=numbers["accuracy"],
        )
        for source, numbers in (evaluation["sources"] if evaluation else {}).items()
        if numbers["accuracy"] is not None
    ]
    return ModelCardData(
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


def _introduction(base_model: str | None, adapted: bool) -> str:
    origin = f"`{base_model}`" if base_model else "a model that is not on the Hub"
    return (
        f"A reward model: it reads a conversation and gives its last response one number, greater for better. Trained from {origin} "
        f"on comparisons of responses with rmtrain{', by low-rank adapters that are merged into these weights' if adapted else ''}."
    )


def _use(path: str, add_special_tokens: bool) -> str:
    where = "the score head of the encoder" if add_special_tokens else "the last token"
    writer = (
        "The tokenizer adds the special tokens around the text of the chat template."
        if add_special_tokens
        else "The chat template writes every special token itself, so that none is added when its text is encoded."
    )
    return (
        f"The reward is the raw logit at {where}: no sigmoid, no softmax. Only differences between responses to the same prompt "
        f"have a meaning; the chance that one is better than another is `sigmoid(reward_a - reward_b)`. {writer}\n\n"
        + _fenced(SNIPPET.format(path=path, add_special_tokens=add_special_tokens), "python")
        + "\n\nWith vLLM, for the same `tokenizer` and `texts`; `problem_type: regression` in `config.json` tells it to apply no "
        "sigmoid, and older versions are told so by `PoolingParams(use_activation=False)`:\n\n"
        + _fenced(VLLM_SNIPPET.format(path=path, add_special_tokens=add_special_tokens), "python")
    )


def _data_table(waterfall: Mapping[str, Mapping[str, Any]]) -> str:
    if not waterfall:
        return "The recipe below names the data."
    rows = [
        (
            source,
            f"{counts['read']:,}",
            _dropped(counts["dropped"]),
            f"{counts['kept']:,}",
            percent(counts["kept"] + counts["gathered"], counts["read"]),
        )
        for source, counts in _with_total(waterfall).items()
    ]
    return _table(("source", "rows read", "dropped", "comparisons", "share of rows used"), rows)


def _with_total(waterfall: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {**waterfall, "all": total(waterfall)} if len(waterfall) > 1 else dict(waterfall)


def _dropped(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "none"


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This model was not evaluated."
    sources = evaluation["sources"]
    shown = {**sources, "all": evaluation} if len(sources) > 1 else sources
    rows = [
        (
            source,
            f"{numbers['n']:,}",
            decimal(numbers["accuracy"]),
            interval(numbers),
            f"{numbers['ties']:,}",
            decimal(numbers["loss"]),
            decimal(numbers["longer_wins"]),
        )
        for source, numbers in shown.items()
    ]
    headings = ("source", "comparisons", "accuracy", "95 % interval", "ties", "loss", "longer wins")
    rules = [f"- {key.replace('_', ' ')}: {evaluation['rules'][key]}." for key in ("accuracy", "longer_wins", "loss")]
    return _table(headings, rows) + "\n\n" + "\n".join([*rules, *_beyond_accuracy(evaluation)])


def _beyond_accuracy(evaluation: Mapping[str, Any]) -> list[str]:
    """How sure it is, how far its rewards spread, and what length does to it."""
    if evaluation["accuracy"] is None:
        return []
    spread = [
        f"{side} {decimal(values['mean'], 3)} ± {decimal(values['std'], 3)}"
        for side, values in zip(("chosen", "rejected"), evaluation["rewards"].values(), strict=True)
    ]
    lines = [
        f"- rewards, mean and standard deviation: {', '.join(spread)}.",
        f"- calibration error of sigmoid(margin): {decimal(evaluation['calibration_error'], 3)}.",
    ]
    if evaluation["longer_wins"] is None:
        return lines
    longer, shorter = (
        decimal(evaluation["accuracy_by_length"][key]["accuracy"], 3) for key in ("winner_longer", "winner_shorter")
    )
    within = decimal(evaluation["spearman_length_within"], 3)
    return [
        *lines,
        f"- length: accuracy {longer} where the preferred response is longer and {shorter} where it is shorter; rank correlation of "
        f"reward and length within a prompt {within}.",
    ]


def _training(recipe: str, versions: Mapping[str, str]) -> str:
    software = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"`rmtrain train recipe.yaml` with this recipe, and {software}:\n\n" + _fenced(_shareable(recipe), "yaml")


def _limits(max_length: int, evaluation: Mapping[str, Any] | None) -> str:
    limits = [
        "A reward says which response the people or models behind the training data would prefer, and repeats their errors and tastes.",
        f"It was trained on conversations of at most {max_length:,} tokens, end token included; it has seen no longer ones.",
        "Rewards for different prompts, and rewards of different models, are not on one scale.",
        "A policy trained against it will find what it is wrong about: watch length, format and a second judge.",
    ]
    warnings = evaluation["warnings"] if evaluation else []
    return "\n".join(f"- {line}" for line in [*limits, *(f"Its evaluation warns: {warning}." for warning in warnings)])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [headings, ("---", *("---:" for _ in headings[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _shareable(recipe: str) -> str:
    """A recipe that says nothing of secrets or of where things lie on somebody's machine."""
    return write_yaml(redact_paths(yaml.safe_load(recipe)))


def card_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    waterfall: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> str:
    """The card of what a recipe trained; other arguments are those of `model_card`."""
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
