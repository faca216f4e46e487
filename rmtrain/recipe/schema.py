"""All keys of a recipe, with their types, bounds, defaults and units.

Sections have the names of the folders that read them. `None` turns a key off; it never means "the default".
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, JsonValue, PositiveFloat, PositiveInt
from pydantic.json_schema import GenerateJsonSchema

from rmtrain.recipe.key_aliases import OrAlias
from rmtrain.recipe.objectives import Binary as Binary
from rmtrain.recipe.objectives import BradleyTerry as BradleyTerry
from rmtrain.recipe.objectives import BySource as BySource
from rmtrain.recipe.objectives import Objectives as Objectives
from rmtrain.recipe.objectives import OneObjective as OneObjective
from rmtrain.recipe.objectives import OwnObjective as OwnObjective
from rmtrain.recipe.objectives import PlackettLuce as PlackettLuce
from rmtrain.recipe.objectives import Regression as Regression
from rmtrain.recipe.objectives import objective_for as objective_for
from rmtrain.recipe.objectives import objective_keys as objective_keys
from rmtrain.recipe.optimizer import Optimizer as Optimizer
from rmtrain.recipe.public_benchmarks import BENCHMARK_GATE, NamedBenchmark, NamedPrompts
from rmtrain.recipe.public_benchmarks import BenchmarkName as BenchmarkName
from rmtrain.recipe.public_benchmarks import EditedPrompts as EditedPrompts
from rmtrain.recipe.public_benchmarks import EvaluatedBenchmark as EvaluatedBenchmark
from rmtrain.recipe.public_benchmarks import UntrainedPrompts as UntrainedPrompts
from rmtrain.recipe.section import CheckedSection, Conflict, KeyPath, Section, Share, kind
from rmtrain.recipe.sources import AbSource as AbSource
from rmtrain.recipe.sources import ComparedSource as ComparedSource
from rmtrain.recipe.sources import Messages as Messages
from rmtrain.recipe.sources import PairSource as PairSource
from rmtrain.recipe.sources import RankedSource as RankedSource
from rmtrain.recipe.sources import ScoredSource as ScoredSource
from rmtrain.recipe.sources import Source as Source
from rmtrain.recipe.sources import TextSource as TextSource
from rmtrain.recipe.sources import TokenizedSource as TokenizedSource
from rmtrain.recipe.sources import variable_problem

Gate = Literal[
    "accuracy",
    "accuracy_low",
    "half_credit_accuracy",
    "loss",
    "spearman",
    "spearman_within",
    "mse",
    "r2",
    "auc",
    "brier",
    "accuracy_at_half",
]
BenchmarkGate = Annotated[str, Field(pattern=BENCHMARK_GATE)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
OF_PREFERENCES = frozenset({"accuracy", "accuracy_low", "half_credit_accuracy"})
LOWER_IS_BETTER = frozenset({"loss", "mse", "brier"})
"""Metrics that are better when lower; all others are better when higher."""


class Architecture(Section):
    """Architecture and sizes of a model with random weights."""

    architecture: str
    """A transformers model type: llama, qwen2, qwen3, gpt_neox, gpt2, bert, ..."""
    hidden_size: Annotated[int, Field(gt=0, le=2**16)]
    """Width of the residual stream."""
    layers: Annotated[int, Field(gt=0, le=2**10)]
    """Number of blocks."""
    heads: Annotated[int, Field(gt=0, le=2**12)]
    """Attention heads; divides `hidden_size`."""
    key_value_heads: Annotated[int, Field(gt=0, le=2**12)] | None = None
    """Key-value heads for grouped-query attention; `null`: the same number as `heads`."""
    intermediate_size: Annotated[int, Field(gt=0, le=2**20)] | None = None
    """Width of the MLP; `null`: four times `hidden_size`."""
    vocab_size: Annotated[int, Field(ge=300, le=2**20)] = 8192
    """Size of the tokenizer trained on the data; with a given tokenizer, its own size is used."""
    max_positions: Annotated[int, Field(gt=0, le=2**24)] = 2048
    """Longest sequence the model takes, in tokens."""

    def conflicts(self) -> Iterator[Conflict]:
        """Heads divide the width, and key-value heads the heads."""
        if self.hidden_size % self.heads:
            yield Conflict(("heads",), f"expected a divisor of hidden_size ({self.hidden_size}), got {self.heads}")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            yield Conflict(("key_value_heads",), f"expected a divisor of heads ({self.heads}), got {self.key_value_heads}")


class ModelBase(Section):
    """Keys of every model, pretrained or from scratch."""

    head: Literal["auto", "new", "from_checkpoint"] = "auto"
    """Score head: `new` is random from `run.seed`; `auto` uses the head of the checkpoint if it has one with a single output."""
    dtype: Annotated[Literal["float32", "bfloat16"], OrAlias] = "float32"
    """Type of the frozen weights under LoRA, and of all weights without it. float32 is the default since AdamW's small updates round to
    nothing in bfloat16; the type of the computation is `training.precision`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: frozen base weights in 4 bits through bitsandbytes (QLoRA); needs `lora`."""
    dropout: Share = 0.0
    """Dropout of the base model. Off by default, since rewards under different masks are not comparable."""


class PretrainedModel(ModelBase):
    """A model and its tokenizer from the Hub or a directory."""

    path: Annotated[str, Field(min_length=1)]
    """Hub model id or local directory."""
    revision: str | None = None
    """Commit, tag or branch of a Hub model."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Needs `revision` to be a full commit hash."""

    def conflicts(self) -> Iterator[Conflict]:
        """Code of others is pinned to a commit, since a branch or tag can change after it was reviewed."""
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            given = "nothing" if self.revision is None else f'"{self.revision}"'
            message = f"trust_remote_code needs a full commit hash of 40 hexadecimal digits here, got {given}"
            yield Conflict(("revision",), message, ("trust_remote_code",))


class ScratchModel(ModelBase):
    """A model with random weights; works without network access."""

    scratch: Architecture
    """Architecture and sizes."""
    tokenizer: str | None = None
    """Hub id or directory of a tokenizer; `null`: a byte-level BPE is trained on the training data."""


def _model_kind(value: Any) -> str:
    # No key names the kind: `scratch` is given or not.
    has_scratch = "scratch" in value if isinstance(value, dict) else hasattr(value, "scratch")
    return "<scratch>" if has_scratch else "<pretrained>"


Model = Annotated[
    Annotated[PretrainedModel, kind("pretrained")] | Annotated[ScratchModel, kind("scratch")],
    Discriminator(_model_kind),
]


class Lora(Section):
    """Low-rank adapters (arXiv:2106.09685). The head is always trained, and saved with the adapters."""

    rank: Annotated[int, Field(gt=0, le=2**14)] = 16
    """Rank of the update."""
    alpha: PositiveFloat = 32.0
    """Scale of the update: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: Share = 0.0
    """Dropout before the adapters."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "all-linear"
    """Names of modules and expert tensors to adapt; or every linear layer except the head and routers, and every expert tensor."""
    experts: bool = True
    """Adapt the tensors that hold the experts of a mixture, [experts, ...]. Needs `dropout: 0` and `dora: false`. Their merged copies take
    memory until the backward pass; `model.gradient_checkpointing` frees them."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (arXiv:2402.09353)."""


class Run(Section):
    """Name, directory and seed of a run."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Name shown in logs, trackers and the model card: letters, digits, `_`, `.` and `-`."""
    output_dir: Annotated[str, Field(min_length=1)]
    """Directory for everything this run writes; each run needs its own. Keys in braces are replaced by their values, as in
    `runs/{run.name}-lr{optimizer.lr}-s{run.seed}`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seed of the data order, of a new head and of random weights; each has its own generator."""


def default_cache() -> str:
    """Return the default of `data.cache_dir` in this environment."""
    root = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.environ.get("RMTRAIN_CACHE") or f"{root.rstrip('/')}/rmtrain"


class Data(Section):
    """Rows to tokens: sources, chat template, length policy, checks, cache."""

    train: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    """Sources to train on."""
    eval: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    """Sources to evaluate on, in addition to the held-out share of `train`."""
    chat_template: Annotated[str, Field(min_length=1)] = "tokenizer"
    """Built-in name (`simple_concat`, `simple_chat`, `chatml`, `zephyr`, `tulu`), `tokenizer` for the tokenizer's own template, a `.jinja`
    file, or the template itself."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default={})
    """Fixed values of variables that the chat template reads, such as `{enable_thinking: false}`. They become defaults of the exported
    template, so that everything that renders with it uses them; a source's own columns come first."""
    max_length: PositiveInt = 1024
    """Maximum length of a prompt with its response, in tokens, including the end token."""
    max_prompt_length: PositiveInt | None = None
    """Maximum length of a prompt, in tokens."""
    overlong: Literal["drop", "truncate_prompt_left", "error"] = "drop"
    """Treatment of comparisons over a limit: drop them, cut the beginning of their prompt, or refuse the data. Responses are never cut."""
    max_drop_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum share of a source's rows that may be dropped; above it the data is refused."""
    allow_rewritten: bool = False
    """Keep rows whose response text the template changes, for example by removing `<think>` blocks."""
    allow_overlap: bool = False
    """Continue when prompts of the evaluation data, or of a benchmark, are also in the training data."""
    benchmarks: Annotated[tuple[NamedPrompts, ...], Field(strict=False)] = ()
    """Benchmarks whose prompts must not be in the training data: names such as `rm_bench`, or files of prompts (json, jsonl, csv,
    parquet)."""
    edited_prompts: EditedPrompts | None = EditedPrompts()
    """Which training prompts count as edited prompts of these benchmarks, or contain one; `null`: only whole prompts are compared."""
    cache_dir: str = Field(default_factory=default_cache, json_schema_extra={"default": "~/.cache/rmtrain"})
    """Directory of tokenized datasets, keyed by a hash of everything that affects them. Only the user who made them may use them. The
    environment decides the default: RMTRAIN_CACHE, or else `rmtrain` in HF_HOME, or else `rmtrain` in XDG_CACHE_HOME."""
    processes: PositiveInt = 1
    """Number of processes that tokenize. The result is the same. Each takes seconds to start, so several are worthwhile from about ten
    thousand rows."""

    def conflicts(self) -> Iterator[Conflict]:
        """Tags are unique, evaluation sources are neither split nor resampled, and template variables have names of their own."""
        for name in self.chat_template_kwargs:
            if problem := variable_problem(name):
                yield Conflict(("chat_template_kwargs", name), problem)
        train: Placed = [(("train", number), source) for number, source in enumerate(self.train)]
        evaluated: Placed = [(("eval", number), source) for number, source in enumerate(self.eval)]
        held_out: Placed = [(path, source) for path, source in train if source.holds_out]
        # Held-out rows are evaluated next to the evaluation sources, so their tags must differ as well.
        repeated = [*_repeated_tags(train), *_repeated_tags(held_out + evaluated)]
        yield from {conflict.key: conflict for conflict in repeated}.values()
        for path, source in evaluated:
            for key in ("holdout", "fold"):
                if getattr(source, key) is not None:
                    message = "an evaluation source is evaluated completely; remove it, or move the source to data.train"
                    yield Conflict((*path, key), message)
            for key in source.resampling_keys:
                yield Conflict((*path, key), "changes training data only; remove it, or move the source to data.train")


Placed = list[tuple[KeyPath, Source]]
"""Sources with their paths below `data`."""


def _repeated_tags(sources: Placed) -> Iterator[Conflict]:
    first: dict[str, KeyPath] = {}
    for path, source in sources:
        owner = first.setdefault(source.title, path)
        if owner != path:
            message = f'"{source.title}" is also the tag of data.{owner[0]}.{owner[1]}; give each source its own'
            yield Conflict((*path, "tag"), message, (*path, "path"))


class Batching(Section):
    """How the comparisons of a step are split into micro-batches. This changes memory and speed, never the result."""

    layout: Literal["auto", "shared_prefix", "packed", "padded"] = "auto"
    """How a micro-batch is stored in memory. `shared_prefix` computes each token once, without padding; `packed` repeats the prompts;
    `padded` works with every model. `auto` uses the first of the three with which this model gives the same rewards as with `padded`, and
    reports it."""
    max_tokens: PositiveInt | Literal["auto"] = "auto"
    """Maximum size of a micro-batch of one process, in tokens as laid out. `auto`: an estimate of what fits into the memory of the GPU,
    8192 on a CPU, and at least the largest comparison. It is halved when memory runs out, and the step is computed again."""


class Training(Section):
    """Length of the training, size of a step, and precision."""

    epochs: PositiveInt | Annotated[PositiveFloat, Field(allow_inf_nan=False)] = 1
    """Passes over the training data. Every pass has an order of its own; the last one of `1.5` ends after half of its steps, rounded up."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps; the schedule ends there too."""
    batch_size: PositiveInt = 32
    """Comparisons per optimizer step over all processes. It does not affect memory."""
    precision: Annotated[Precision, OrAlias] = "auto"
    """Type of the matrix products: plain float32, or autocast to bfloat16, or to float16 with loss scaling. `auto`: bfloat16 on a GPU,
    float16 on one without bfloat16 (T4, V100), float32 on a CPU. Head, loss and rewards stay float32."""
    deterministic: bool = False
    """Use only kernels that give the same bits every time: slower on a GPU, and an error where no such kernel exists. Runs on a CPU
    are always repeatable."""
    allow_bfloat16_weights: bool = False
    """Allow training of bfloat16 weights, although plain AdamW loses small updates."""


class Checkpointing(Section):
    """When the state of a run is saved, so that the same command resumes it, and which checkpoints are kept."""

    every: PositiveInt | None = None
    """Save after this many steps."""
    minutes: PositiveFloat | None = 30.0
    """Save when this many minutes have passed since the last checkpoint; `null`: only by `every`, and when a signal stops the run."""
    keep: PositiveInt = 2
    """Number of latest checkpoints to keep, in addition to the best one and the one that was resumed from."""
    best: Gate | None = None
    """Evaluation metric that decides which checkpoint is the best."""
    load_best_at_end: bool = False
    """Evaluate and export the best weights by `best` instead of the last ones."""

    def conflicts(self) -> Iterator[Conflict]:
        """The best checkpoint has a metric."""
        if self.load_best_at_end and self.best is None:
            yield Conflict(("load_best_at_end",), "needs a metric; set checkpoints.best, such as accuracy")


class EarlyStopping(Section):
    """End the training when evaluations no longer improve. The run then evaluates and exports as at its last step."""

    metric: Gate
    """Evaluation metric that has to improve: a loss by falling, the others by rising."""
    patience: PositiveInt
    """Number of evaluations in a row without a new best value after which the training ends."""


class EvaluationSection(Section):
    """When to evaluate, how many samples to show, and which values the model must reach."""

    every: PositiveInt | None = None
    """Evaluate after this many steps, in addition to the evaluation at the end."""
    on_start: bool = False
    """Evaluate before the first step as well, at step 0. That counts neither for `checkpoints.best` nor for `early_stopping`."""
    early_stopping: EarlyStopping | None = None
    """End the training early; needs `every`."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Number of comparisons to show with their rewards at each evaluation."""
    benchmarks: Annotated[tuple[NamedBenchmark, ...], Field(strict=False)] = ()
    """Public benchmarks to evaluate on at every evaluation, such as `[rm_bench]`; an entry may have an `every` and a `path` of its own."""
    gates: dict[Gate | BenchmarkGate, float] = Field(default={})
    """Values that the final evaluation must reach, such as `{accuracy: 0.7, rm_bench: 0.6}`; a missed gate ends the command with exit
    code 6."""

    @property
    def pair_gates(self) -> dict[str, float]:
        """The gates on the evaluation data, without those on benchmarks."""
        return {gate: required for gate, required in self.gates.items() if gate in get_args(Gate)}

    def conflicts(self) -> Iterator[Conflict]:
        """Early stopping has evaluations to go by, and benchmarks are evaluated at some of the evaluations, each once."""
        if self.early_stopping is not None and self.every is None:
            yield Conflict(("early_stopping",), "needs evaluations during the training; set evaluation.every, such as 100")
        names = [benchmark.name for benchmark in self.benchmarks]
        for number, benchmark in enumerate(self.benchmarks):
            if benchmark.name in names[:number]:
                yield Conflict(("benchmarks", number), f"{benchmark.name} is already in the list; remove one")
            if benchmark.every is not None and (self.every is None or benchmark.every % self.every):
                message = f"expected a multiple of evaluation.every ({self.every or 'not set'}), got {benchmark.every}"
                yield Conflict(("benchmarks", number, "every"), message, ("every",))
        for gate in self.gates:
            name = gate.partition(".")[0]
            if gate not in get_args(Gate) and name not in names:
                yield Conflict(("gates", gate), f"{name} is not evaluated; add it to evaluation.benchmarks")


class Tracking(Section):
    """Destinations of metrics, in addition to `metrics.jsonl`."""

    log_every: PositiveInt = 10
    """Number of steps between log lines."""
    to: Annotated[tuple[Literal["wandb", "tensorboard", "trackio", "mlflow", "swanlab"], ...], Field(strict=False)] = ()
    """Trackers; each must be installed."""
    project: Annotated[str, Field(min_length=1)] | None = None
    """Project name in the trackers; None: that of the environment, such as WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME, otherwise `rmtrain`."""


class Hub(Section):
    """Upload of the exported model."""

    push: bool = False
    """Upload after a successful export."""
    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Repository, as `owner/name`; `null`: `run.name` under the logged-in user."""
    public: bool = False
    """Make the repository public; it is private by default."""


class Recipe(CheckedSection):
    """A complete description of one run."""

    run: Run
    """Name, directory and seed."""
    data: Data
    """Rows to tokens."""
    model: Model
    """Tokens to rewards: `path` for a pretrained model, `scratch` for random weights."""
    lora: Lora | None = None
    """Low-rank adapters; `null`: all weights are trained."""
    batching: Batching = Batching()
    """Comparisons to micro-batches."""
    objective: Objectives = BradleyTerry()
    """Rewards to loss."""
    optimizer: Optimizer
    """Loss to updates."""
    training: Training = Training()
    """Length of the training, and comparisons per step."""
    checkpoints: Checkpointing = Checkpointing()
    """When to save."""
    evaluation: EvaluationSection = EvaluationSection()
    """When to evaluate."""
    tracking: Tracking = Tracking()
    """Destinations of metrics."""
    hub: Hub = Hub()
    """Upload of the result."""

    def conflicts(self) -> Iterator[Conflict]:
        """Keys of different sections fit together."""
        yield from self._weight_conflicts()
        yield from self._length_conflicts()
        yield from self._objective_conflicts()
        yield from self._metric_conflicts()
        if not self.data.eval and not any(source.holds_out for source in self.data.train):
            message = "there is no evaluation data; add data.eval, or set holdout of a source in data.train"
            if self.evaluation.early_stopping is not None:
                yield Conflict(("evaluation", "early_stopping"), message)
            if self.checkpoints.best is not None:
                yield Conflict(("checkpoints", "best"), message)
            if self.evaluation.pair_gates:
                yield Conflict(("evaluation", "gates"), message)
            for key in () if self.evaluation.benchmarks else ("every", "on_start"):
                if getattr(self.evaluation, key):
                    yield Conflict(("evaluation", key), f"{message}; or set evaluation.benchmarks")

    def _weight_conflicts(self) -> Iterator[Conflict]:
        model, training = self.model, self.training
        if self.lora is not None:
            return
        if model.quantization is not None:
            yield Conflict(("model", "quantization"), f"{model.quantization} weights cannot be trained; add lora, or set null")
        if model.dtype == "bfloat16" and not training.allow_bfloat16_weights:
            message = "AdamW's small updates round to nothing; set float32, add lora, or set training.allow_bfloat16_weights"
            yield Conflict(("model", "dtype"), message)

    def _length_conflicts(self) -> Iterator[Conflict]:
        longest, max_tokens = self.data.max_length, self.batching.max_tokens
        if isinstance(self.model, ScratchModel) and longest > self.model.scratch.max_positions:
            message = f"expected at most model.scratch.max_positions ({self.model.scratch.max_positions}), got {longest}"
            yield Conflict(("data", "max_length"), message, ("model", "scratch", "max_positions"))
        if max_tokens != "auto" and max_tokens < longest:
            message = f"expected at least data.max_length ({longest}), got {max_tokens}"
            yield Conflict(("batching", "max_tokens"), message, ("data", "max_length"))

    def _metric_conflicts(self) -> Iterator[Conflict]:
        evaluated = [*self.data.eval, *(source for source in self.data.train if source.holds_out)]
        has_targets = any(isinstance(source, ScoredSource) for source in evaluated)
        has_preferences = any(not isinstance(source, ScoredSource) for source in evaluated)
        named: list[tuple[KeyPath, str]] = [(("evaluation", "gates", gate), gate) for gate in self.evaluation.pair_gates]
        named += [] if self.checkpoints.best is None else [(("checkpoints", "best"), self.checkpoints.best)]
        for key, metric in named if evaluated else ():
            needs_preferences, needs_targets = metric in OF_PREFERENCES, metric not in OF_PREFERENCES and metric != "loss"
            if (needs_preferences and not has_preferences) or (needs_targets and not has_targets):
                rows = "preferences" if needs_preferences else "targets"
                yield Conflict(key, f"{metric} is of {rows}, and no evaluation data has any; name another metric")

    def _objective_conflicts(self) -> Iterator[Conflict]:
        if self.data.train == self.data.eval:
            return  # the data of `rmtrain eval --data`: nothing is trained, and any model may be evaluated on any rows
        titles = {source.title for source in (*self.data.train, *self.data.eval)}
        for name in self.objective.sources.keys() - titles if isinstance(self.objective, BySource) else ():
            yield Conflict(("objective", "sources", name), f"no source has this tag; expected one of {', '.join(sorted(titles))}")
        for number, source in enumerate(self.data.train):
            at = ("data", "train", number)
            objective = objective_for(self.objective, source.title)
            has_targets = isinstance(source, ScoredSource)
            learns_targets = isinstance(objective, Regression | Binary)
            if has_targets != learns_targets and not isinstance(objective, OwnObjective):
                kinds = "regression or binary" if has_targets else "bradley_terry or plackett_luce"
                rows = "targets" if has_targets else "preferences"
                message = f"rows with {rows} need objective.type: {kinds}, got {objective.type}; for both kinds set by_source"
                yield Conflict((*at, "format"), message, ("objective",))
            if isinstance(objective, PlackettLuce):
                yield from _ranking_conflicts(at, source)
            if isinstance(objective, BradleyTerry) and objective.margin == "scale" and _margin_key(source) is None:
                yield Conflict(
                    (*at, "format"), "objective.margin: scale needs margins; set margin of this source", ("objective", "margin")
                )
            elif isinstance(objective, BradleyTerry) and objective.margin == "scale" and getattr(source, "augment", None):
                yield Conflict(
                    (*at, "augment"), "its comparisons have no margins, which objective.margin: scale needs; remove it"
                )


def _margin_key(source: Source) -> str | None:
    """Return the key that gives the rows of a source their margins."""
    return next((key for key in ("margin", "margin_from_label", "margin_from_score") if getattr(source, key, None)), None)


def _ranking_conflicts(at: KeyPath, source: Source) -> Iterator[Conflict]:
    margin = _margin_key(source)
    if margin is not None:
        yield Conflict((*at, margin), "plackett_luce has no margins; remove it, or use bradley_terry")
    if isinstance(source, AbSource) and source.tie == "half":
        yield Conflict((*at, "tie"), "plackett_luce has no half preferences; set drop, or use bradley_terry")
    if isinstance(source, AbSource) and source.label.is_soft:
        yield Conflict((*at, "label"), "plackett_luce has no probabilities; use bradley_terry")
    if isinstance(source, RankedSource) and source.policy in ("best_vs_rest", "adjacent"):
        yield Conflict((*at, "policy"), "plackett_luce learns whole rankings; set all, or use bradley_terry")
    if isinstance(source, RankedSource) and source.max_pairs is not None:
        yield Conflict((*at, "max_pairs"), "plackett_luce learns whole rankings; remove it, or use bradley_terry")


class EvaluationRecipe(CheckedSection):
    """The sections that `rmtrain eval MODEL --data FILE` reads; overrides may set their keys."""

    data: Data
    """Rows to tokens; only `data.eval` is scored."""
    batching: Batching = Batching()
    """Comparisons to micro-batches."""
    objective: Objectives = BradleyTerry()
    """Rewards to loss."""
    training: Training = Training()
    """Only `training.precision` is read."""


EXTENDS = "extends"
"""The key by which a file names the files that it extends. They are merged before the recipe is validated; see `rmtrain.recipe.parts`."""
INHERITED: dict[str, KeyPath] = {
    "Run": ("run",),
    "Data": ("data",),
    "Architecture": ("model", "scratch"),
    "Optimizer": ("optimizer",),
    "EarlyStopping": ("evaluation", "early_stopping"),
}
"""Sections whose required keys may be in the file that is extended, with their place."""


def json_schema() -> str:
    """Return the JSON Schema (draft 2020-12) of a recipe as text with one newline at its end; docstrings of fields are the descriptions.

    A file that extends another one needs none of the required keys outside of lists. Checks between keys, such as that `heads` divides
    `hidden_size`, are not part of it.
    """
    schema = Recipe.model_json_schema()
    sections: dict[str, Any] = schema["$defs"]
    whole: dict[str, Any] = {"required": schema.pop("required")}
    for name, path in INHERITED.items():
        place: dict[str, Any] = whole
        for key in path:
            place = place.setdefault("properties", {}).setdefault(key, {})
        place["required"] = sections[name].pop("required")
    whole["properties"]["model"]["anyOf"] = [{"required": sections["PretrainedModel"].pop("required")}, {"required": ["scratch"]}]
    file = {"type": "string", "minLength": 1}
    extends = {
        "description": "File, or list of files, whose keys this file changes; paths are relative to it. Later files win over earlier ones.",
        "anyOf": [file, {"type": "array", "items": file}],
    }
    schema["properties"] = {EXTENDS: extends, **schema["properties"]}
    document = {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "rmtrain recipe"}
    document |= {"if": {"required": [EXTENDS]}, "else": whole}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
