"""The part of a new recipe that depends on the model: template, lengths, and what is trained, measured on a sample of the rows."""

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.plan import Costs
from rmtrain.command_line.options import TrainOptions
from rmtrain.commands.dry_run import GIGABYTE, memory_of, on_gpu
from rmtrain.data.comparison import Comparison
from rmtrain.data.prepare import PreparedData, prepare_unchecked
from rmtrain.data.rows.examine import PLACE_KEYS, Guess, RowSample
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.engine.memory_estimate import MemoryModel, meta_model
from rmtrain.errors import CheckpointError, DataError, RecipeError, TryAgain
from rmtrain.intervals import wilson_interval
from rmtrain.recipe.datasets import Entry
from rmtrain.recipe.schema import Data, PretrainedModel, Recipe

logger = logging.getLogger("rmtrain")

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
"""The model of a recipe whose user names none: small, with a chat template of its own."""
SCRATCH: Entry = {
    "architecture": "llama",
    "hidden_size": 128,
    "layers": 4,
    "heads": 4,
    "intermediate_size": 352,
    "vocab_size": 4096,
}
"""A model that needs no network: that of the quickstart."""
LENGTHS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
"""Values of `data.max_length` to choose from."""
UNLIMITED = 2**20
PERCENTILE = 99
CHARACTERS_PER_TOKEN, TOKENS_PER_TURN = 3.0, 8
"""An estimate on the long side: English text has about four characters a token."""
DROPS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7)
"""Values of `data.max_drop_fraction` to choose from."""
LEAST_TOKENS = 4096
"""Tokens of a micro-batch for which the memory has to suffice."""
BUILT_IN = "simple_chat"
LORA: Entry = {"rank": 16}
VARIANTS: tuple[tuple[str, Entry | None, Entry], ...] = (
    ("all weights are trained", None, {}),
    ("adapters are trained, since all weights do not fit", LORA, {}),
    ("adapters on bfloat16 weights", LORA, {"dtype": "bfloat16", "gradient_checkpointing": True}),
    ("adapters on weights in 4 bits", LORA, {"quantization": "nf4", "gradient_checkpointing": True}),
)
"""Ways to train a model, from the one that needs the most memory to the one that needs the least."""


@dataclass
class Settings:
    """Keys of a recipe that depend on the model. `comments` has a text for a key, by its path."""

    model: Entry
    data: Entry
    lora: Entry | None = None
    lr: float = 1e-5
    comments: dict[tuple[str, ...], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """A sample of rows to try models on, with its entry, including `holdout`, and objective; files are written to `folder`."""

    guess: Guess
    entry: Entry
    sample: RowSample
    objective: Entry
    folder: Path

    def recipe(self, model: Entry, data: Entry, lora: Entry | None = None) -> Recipe:
        """Return a recipe that reads the sample, with these sections."""
        source = {key: value for key, value in self.entry.items() if key not in PLACE_KEYS} | self.sample.keys
        sections = {
            "run": {"name": "init", "output_dir": str(self.folder / "run")},
            "data": {"train": [source], "cache_dir": str(self.folder / "cache"), **data},
            "model": model,
            "objective": self.objective,
            "optimizer": {"lr": 1e-5},
        }
        return Recipe.model_validate(sections | ({} if lora is None else {"lora": lora}))


def settle(trial: Trial, model: str | None) -> Settings:
    """Return the settings for a model, or for one that can be used here where none is named.

    Where its tokenizer cannot be read because the Hub cannot be reached, lengths are estimated.

    Raises:
        CheckpointError: no such model, or one whose tokenizer cannot be used.
        DataError: no row is left.
    """
    if not trial.guess.fit.comparisons:  # of a documented dataset whose rows could not be read
        return estimated(trial.guess, model or DEFAULT_MODEL)
    try:
        return _measured(trial, {"path": model or DEFAULT_MODEL})
    except (CheckpointError, TryAgain) as error:
        if model is not None and not _is_out_of_reach(model, error):
            raise type(error)(*(problem.replace("model.path: ", "--model: ") for problem in error.problems)) from error
        reason = error.problems[0].removeprefix("model.path: ")
        if model is not None:
            logger.warning("%s; max_length is an estimate from characters", reason)
            return estimated(trial.guess, model)
        logger.info("the recipe has a small model with random weights, since the default cannot be read: %s", reason)
    return _measured(trial, {"scratch": SCRATCH})


def _is_out_of_reach(model: str, error: CheckpointError | TryAgain) -> bool:
    """Return whether a model may exist on the Hub, which did not answer."""
    is_path = os.path.exists(os.path.expanduser(model)) or model[0] in "./~" or model.count("/") > 1
    return not is_path and not isinstance(error.__cause__, RepositoryNotFoundError | HFValidationError)


def _measured(trial: Trial, model: Entry) -> Settings:
    """Return the settings of a model whose tokenizer is here."""
    template, tokenizer, prepared = _with_template(trial, model)
    longest = np.concatenate([prepared.train.longest, prepared.eval.longest])
    if not len(longest):
        raise DataError(f"no row is left with the tokenizer and chat template of this model: {_reasons(prepared)}")
    settings = Settings(dict(model), {})
    if template != "tokenizer":
        settings.data["chat_template"] = template
        own = "" if "scratch" in model else "; the model has none of its own, or one that refuses these rows"
        settings.comments["data", "chat_template"] = f"a built-in template{own}"
    limit = meta_model(PretrainedModel(**model), None, tokenizer).declared_positions if "path" in model else None
    _set_length(settings, longest, 100 if trial.sample.is_whole else PERCENTILE, limit)
    if "scratch" in model:
        settings.model = {"scratch": SCRATCH | {"max_positions": settings.data["max_length"]}}
        settings.lr = 5e-4
        settings.comments["model",] = (
            f"a small model with random weights, to try the data; for a real run use model: {{path: {DEFAULT_MODEL}}}"
        )
    prepared = prepare_unchecked(trial.recipe(settings.model, settings.data).data, tokenizer)
    _set_drops(settings, prepared, trial.sample.is_whole)
    if "path" in model:
        try:
            _set_variant(settings, trial, prepared, tokenizer)
        except RecipeError as error:  # such as a model whose control flow depends on values
            logger.warning("%s; adapters are trained", error.problems[0])
            settings.lora, settings.lr = LORA, 1e-4
    return settings


def _with_template(trial: Trial, model: Entry) -> tuple[str, PreTrainedTokenizerBase, PreparedData]:
    """Return the model's own template where it keeps nearly as many rows as a built-in one, else that, with all rows as tokens."""
    kept: dict[str, tuple[PreTrainedTokenizerBase, PreparedData]] = {}
    for template in ("tokenizer", BUILT_IN) if "path" in model else (BUILT_IN,):
        is_scratch = "scratch" in model
        sections = {"scratch": model["scratch"] | {"max_positions": UNLIMITED}} if is_scratch else model
        recipe = trial.recipe(sections, {"chat_template": template, "max_length": UNLIMITED})
        try:
            tokenizer = load_tokenizer(recipe.model, recipe.data)
            kept[template] = tokenizer, prepare_unchecked(recipe.data, tokenizer)
        except (RecipeError, DataError):
            if template == BUILT_IN:
                raise
            continue
        if _count(kept[template][1]) >= 0.95 * len(trial.guess.fit.comparisons):
            break
    template = max(kept, key=lambda name: _count(kept[name][1]))
    return template, *kept[template]


def _count(prepared: PreparedData) -> int:
    return len(prepared.train) + len(prepared.eval)


def _set_length(settings: Settings, longest: Any, share: int, limit: int | None) -> None:
    """Set `max_length` to the next round number that keeps `share` of 100 comparisons, within the limit of the model."""
    needed = float(np.percentile(longest, share))
    most = min(limit or LENGTHS[-1], LENGTHS[-1])
    length = next((length for length in LENGTHS if needed <= length <= most), most)
    settings.data["max_length"] = length
    over = int((longest > length).sum())
    most_rows = "all" if share == 100 else f"{share} of 100"
    text = f"tokens; {most_rows} comparisons of the sample have at most {needed:,.0f}, half of them {np.median(longest):,.0f}"
    if over > 0.02 * len(longest):
        settings.data["overlong"] = "truncate_prompt_left"
        whose = "the limit of the model" if most == limit else "a limit for the memory"
        text = f"tokens, {whose}; {over} of {len(longest)} comparisons of the sample are longer"
        settings.comments["data", "overlong"] = "cut the beginning of the prompt, never a response"
    settings.comments["data", "max_length"] = text


def _set_drops(settings: Settings, prepared: PreparedData, is_whole: bool) -> None:
    """Set `max_drop_fraction` where more rows cannot be used than its default allows, or may be, by a sample."""
    reasons, shares = Counter[str](), [0.0]
    for split in (prepared.train, prepared.eval):
        for count in split.waterfall.sources.values():
            faults = {reason: number for reason, number in count.dropped.items() if reason not in INTENTIONAL_DROPS}
            lost = sum(faults.values())
            wanted = count.read - sum(count.dropped.values()) + lost
            reasons.update(faults)
            if lost and (is_whole or split is prepared.train):
                shares.append(lost / wanted if is_whole else wilson_interval(lost / wanted, wanted)[1])
    if max(shares) > Data.model_fields["max_drop_fraction"].default:
        settings.data["max_drop_fraction"] = next((drop for drop in DROPS if drop >= 1.1 * max(shares)), 0.9)
        listed = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(3))
        settings.comments["data", "max_drop_fraction"] = f"rows of the sample that cannot be used: {listed}"


def _reasons(prepared: PreparedData) -> str:
    examples = [text for count in prepared.train.waterfall.sources.values() for text, *_ in count.examples.values()]
    return "; ".join(examples[:3])


def _set_variant(settings: Settings, trial: Trial, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set what is trained: the first of `VARIANTS` whose memory suffices on this machine."""
    memory, name = memory_of(TrainOptions(), 1), "GPU" if on_gpu(TrainOptions()) else "machine"
    for text, lora, keys in _variants():
        model = MemoryModel.of(
            trial.recipe(settings.model | keys, settings.data, lora), tokenizer, prepared.train, "auto", on_gpu(TrainOptions())
        )
        estimate = model.estimate("single", 1, max(LEAST_TOKENS, int(Costs.of(prepared.train, model.layout).tokens.max())))
        needed = f"about {max(estimate.total, estimate.start) / GIGABYTE:.1f} of the {memory / GIGABYTE:.1f} GB of this {name}"
        comment = f"{text}: {needed}"
        if estimate.fits(memory):
            break
    else:
        comment = f"too large for this machine: {needed}; `rmtrain train --dry-run` shows what several GPUs need"
    settings.model |= keys
    settings.lora, settings.lr = lora, 1e-5 if lora is None else 1e-4
    settings.comments["model",] = comment


def _variants() -> Iterator[tuple[str, Entry | None, Entry]]:
    can_quantize = on_gpu(TrainOptions()) and importlib.util.find_spec("bitsandbytes") is not None
    return (variant for variant in VARIANTS if can_quantize or "quantization" not in variant[2])


def estimated(guess: Guess, model: str) -> Settings:
    """Return the settings of a model whose tokenizer is not here, from the number of characters."""
    lengths = [_estimate(row) for row in guess.fit.comparisons]
    settings = Settings({"path": model}, {"chat_template": BUILT_IN}, LORA, 1e-4)
    settings.comments["data", "chat_template"] = "a built-in template, which every model takes; `tokenizer` is the model's own"
    if lengths:
        _set_length(settings, np.array(lengths), PERCENTILE, None)
        settings.comments["data", "max_length"] = f"an estimate from characters: {settings.comments['data', 'max_length']}"
    else:
        settings.data["max_length"] = 2048
        settings.comments["data", "max_length"] = "tokens; `rmtrain preprocess` shows the lengths of the rows"
    settings.comments["lora",] = "leave it out to train all weights, with a learning rate of 1.0e-5"
    return settings


def _estimate(row: Comparison) -> int:
    """Return about the number of tokens of the longest sequence of a comparison."""

    def tokens(turns: Any) -> float:
        return sum(len(turn["content"]) / CHARACTERS_PER_TOKEN + TOKENS_PER_TURN for turn in turns)

    return round(tokens(row.prompt) + max(map(tokens, row.responses)))
