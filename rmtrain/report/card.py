"""The model card: what a model was made from, how good it is, and how to use it, as Markdown for the Hub."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rmtrain.recipe.redact import redact
from rmtrain.report.evaluation import interval
from rmtrain.report.formats import decimal, percent
from rmtrain.report.waterfall import total

TAGS = ["reward-model", "rmtrain", "text-classification"]

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
    datasets: Mapping[str, str],
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
        datasets: Hub ids of those sources, by tag, that are on the Hub.
        waterfall: rows read, dropped and kept of each training source.
        evaluation: what `summarize` returned for the final model; None: it was not evaluated.
        recipe: the resolved recipe, as YAML text.
        max_length: longest response with its prompt that was trained on, in tokens.
        add_special_tokens: whether the tokenizer adds them to a rendered text, as those of encoders do; otherwise its template writes them.
        versions: of the software, by package name.
    """
    sections = [
        f"# {name}",
        _introduction(base_model),
        "## Use\n\n" + _use(path, add_special_tokens),
        "## Data\n\n" + _data_table(waterfall),
        "## Evaluation\n\n" + _evaluation(evaluation),
        "## Training\n\n" + _training(recipe, versions),
        "## Limits\n\n" + _limits(max_length, evaluation),
    ]
    front_matter = _metadata(name, base_model, datasets, evaluation).to_yaml().strip()
    return f"---\n{front_matter}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    name: str, base_model: str | None, datasets: Mapping[str, str], evaluation: Mapping[str, Any] | None
) -> ModelCardData:
    results = [
        EvalResult(
            task_type="preference_evaluation",
            dataset_type=datasets.get(source, source),
            dataset_name=source,
            metric_type="accuracy",
            metric_value=numbers["accuracy"],
        )
        for source, numbers in (evaluation["sources"] if evaluation else {}).items()
        if numbers["accuracy"] is not None
    ]
    return ModelCardData(
        base_model=base_model,
        datasets=sorted(set(datasets.values())) or None,
        eval_results=results or None,
        library_name="transformers",
        metrics=["accuracy"],
        model_name=name,
        pipeline_tag="text-classification",
        tags=TAGS,
    )


def _introduction(base_model: str | None) -> str:
    origin = f"`{base_model}`" if base_model else "a model that is not on the Hub"
    return (
        f"A reward model: it reads a conversation and gives its last response one number, greater for better. Trained from {origin} "
        "on comparisons of responses with rmtrain."
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
    )


def _data_table(waterfall: Mapping[str, Mapping[str, Any]]) -> str:
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
        return "This model was not evaluated: its recipe names no evaluation data."
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
    return _table(headings, rows) + "\n\n" + "\n".join(rules)


def _training(recipe: str, versions: Mapping[str, str]) -> str:
    software = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"`rmtrain train recipe.yaml` with this recipe, and {software}:\n\n" + _fenced(_without_home(redact(recipe)), "yaml")


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


def _without_home(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    return text.replace(home, "~") if home not in ("", "~") else text
