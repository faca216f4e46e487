"""The vocabulary of a recipe: every section and key, with its type, bounds, default and unit.

Sections bear the names of the folders that read them. `None` means off, never "default".
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rmtrain.recipe.section import CrossFieldError, Section, Share, refuse
from rmtrain.recipe.sources import AbSource as AbSource
from rmtrain.recipe.sources import Messages as Messages
from rmtrain.recipe.sources import PairSource as PairSource
from rmtrain.recipe.sources import RankedSource as RankedSource
from rmtrain.recipe.sources import Source as Source
from rmtrain.recipe.sources import TextSource as TextSource
from rmtrain.recipe.sources import TokenizedSource as TokenizedSource
from rmtrain.recipe.sources import sources_misfits


class Architecture(Section):
    """Sizes of a model built from nothing."""

    architecture: str
    """A transformers model type: llama, qwen2, qwen3, gpt_neox, gpt2, bert, ..."""
    hidden_size: Annotated[int, Field(gt=0, le=2**16)]
    """Width of the residual stream."""
    layers: Annotated[int, Field(gt=0, le=2**10)]
    """Number of blocks."""
    heads: Annotated[int, Field(gt=0, le=2**12)]
    """Attention heads; divides `hidden_size`."""
    key_value_heads: Annotated[int, Field(gt=0, le=2**12)] | None = None
    """Key-value heads for grouped-query attention; None: as many as `heads`."""
    intermediate_size: Annotated[int, Field(gt=0, le=2**20)] | None = None
    """Width of the MLP; None: four times `hidden_size`."""
    vocab_size: Annotated[int, Field(ge=300, le=2**20)] = 8192
    """Size of the tokenizer trained on the data; with a given tokenizer, its own size is used."""
    max_positions: Annotated[int, Field(gt=0, le=2**24)] = 2048
    """Longest sequence the model takes, in tokens."""


class ModelBase(Section):
    """What every model takes, whatever it starts from."""

    head: Literal["auto", "new", "from_checkpoint"] = "auto"
    """Score head: `new` is random from `run.seed`; `auto` takes the checkpoint's where it has one with a single output."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights under LoRA and of all weights otherwise. float32 is the default since
    AdamW's small updates round to nothing in bfloat16; compute follows `training.precision`."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: frozen base in 4 bits through bitsandbytes (QLoRA); needs `lora`."""
    dropout: Share = 0.0
    """Dropout of the base model. Off by default: two sides under different masks are not comparable."""


class PretrainedModel(ModelBase):
    """A model and its tokenizer from the Hub or a directory."""

    path: Annotated[str, Field(min_length=1)]
    """Hub model id or local directory."""
    revision: str | None = None
    """Commit, tag or branch of a Hub model."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Needs `revision` to be a full commit hash."""


class ScratchModel(ModelBase):
    """A model with random weights; needs no network."""

    scratch: Architecture
    """Architecture and sizes."""
    tokenizer: str | None = None
    """Hub id or directory of a tokenizer; None: a byte-level BPE is trained on the training data."""


def _model_kind(value: Any) -> str:
    has_scratch = "scratch" in value if isinstance(value, dict) else hasattr(value, "scratch")
    return "scratch" if has_scratch else "pretrained"


Model = Annotated[
    Annotated[PretrainedModel, Tag("pretrained")] | Annotated[ScratchModel, Tag("scratch")],
    Discriminator(_model_kind),
]


class Lora(Section):
    """Low-rank adapters (arXiv:2106.09685). The head is always trained and saved beside them."""

    rank: Annotated[int, Field(gt=0, le=2**14)] = 16
    """Rank of the update."""
    alpha: PositiveFloat = 32.0
    """Scale of the update: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: Share = 0.0
    """Dropout before the adapters."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "all-linear"
    """Module names to adapt, or every linear layer except the head."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (arXiv:2402.09353)."""


Gate = Literal["accuracy", "accuracy_low", "half_credit_accuracy", "loss"]
LOWER_IS_BETTER = frozenset({"loss"})
"""Metrics of which less is better; of all others, more."""


class Run(Section):
    """Where a run lives and the number all its randomness comes from."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Name shown in logs, trackers and the model card: letters, digits, `_`, `.` and `-`."""
    output_dir: Annotated[str, Field(min_length=1)]
    """Directory of everything this run writes. It belongs to one run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seed of the data order, of a new head and of random weights, each with its own generator."""


class Data(Section):
    """Rows to tokens: sources, chat template, length policy, checks, cache."""

    train: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    """Sources to train on."""
    eval: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    """Sources to evaluate on, beside the held-out share of `train`."""
    chat_template: Annotated[str, Field(min_length=1)] = "tokenizer"
    """Built-in name (`simple_concat`, `simple_chat`, `chatml`, `zephyr`, `tulu`), `tokenizer` for its own, a `.jinja` file, or the template
    itself."""
    max_length: PositiveInt = 1024
    """Longest response with its prompt, in tokens, end token included."""
    max_prompt_length: PositiveInt | None = None
    """Longest prompt, in tokens."""
    overlong: Literal["drop", "truncate_prompt_left", "error"] = "drop"
    """What happens to a comparison over a limit. Responses are never cut."""
    max_drop_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of a source's rows that may be dropped before the data is refused."""
    allow_rewritten: bool = False
    """Keep rows whose template changes the response text (such as removed `<think>` blocks)."""
    allow_overlap: bool = False
    """Go on when a prompt of the evaluation data, or of a benchmark, is also trained on."""
    benchmarks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Files of benchmarks (json, jsonl, csv, parquet) whose prompts must not be trained on."""
    cache_dir: str = "~/.cache/rmtrain"
    """Directory of tokenized datasets, keyed by the hash of everything that shapes them."""
    processes: PositiveInt = 1
    """Processes that tokenize. The result is the same; each takes seconds to start, so more than one pays from some ten thousand rows."""


class Batching(Section):
    """How the comparisons of a step are cut into micro-batches. Changes memory and speed, never the result."""

    layout: Literal["auto", "shared_prefix", "packed", "padded"] = "auto"
    """How a micro-batch lies in memory. `shared_prefix` computes each token once and pads nothing; `packed` repeats the prompts; `padded`
    is what every model can do. `auto` takes the first of the three in which the model computes what it computes padded, and says which."""
    max_tokens: PositiveInt | Literal["auto"] = "auto"
    """Largest micro-batch of one process, in tokens as laid out. `auto`: what the memory of the GPU is likely to hold, 8192 on a CPU, and
    at least the largest comparison. Either is halved when memory runs out, and the same step is computed again."""


class BradleyTerry(Section):
    """`-log sigmoid(r_winner - r_loser - margin)`, averaged over the edges of a comparison, then over comparisons."""

    type: Literal["bradley_terry"] = "bradley_terry"
    """Kind of objective."""
    center_rewards: PositiveFloat | None = None
    """Coefficient of `(r_winner + r_loser)^2`, which holds rewards around zero (arXiv:2312.09244, eq. 2). TRL's docs suggest 0.01."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be the wrong way round; keeps rewards of noisy comparisons from drifting apart."""


class PlackettLuce(Section):
    """The likelihood of each comparison's whole ranking: the best is chosen among all, the second among the rest, and so on."""

    type: Literal["plackett_luce"]
    """Kind of objective."""
    center_rewards: PositiveFloat | None = None
    """Coefficient of `(r_winner + r_loser)^2`, averaged over the edges (arXiv:2312.09244, eq. 2)."""


def _objective_of(value: Any) -> str | None:
    kind = value.get("type", "bradley_terry") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


Objectives = Annotated[
    Annotated[BradleyTerry, Tag("bradley_terry")] | Annotated[PlackettLuce, Tag("plackett_luce")],
    Discriminator(_objective_of),
]


class Optimizer(Section):
    """AdamW and the learning-rate schedule, a pure function of the step."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` holds its state in 8 bits through bitsandbytes (extra `8bit`)."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after warm-up: to zero linearly or by half a cosine, or constant."""
    warmup: Share = 0.0
    """Share of all steps over which the rate rises linearly from zero."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled decay of matrices; biases and norms have none."""
    clip: PositiveFloat | None = 1.0
    """Largest global gradient norm; None: no clipping."""


class Training(Section):
    """How long to train, and how many comparisons make one step."""

    epochs: PositiveInt = 1
    """Passes over the training data."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps; the schedule ends there too."""
    batch_size: PositiveInt = 32
    """Comparisons per optimizer step over all processes. Memory does not depend on it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products: bfloat16 autocast or plain float32; `auto`: bfloat16 where a GPU supports it.
    Head, loss and rewards stay float32."""
    deterministic: bool = False
    """Only kernels that give the same bits every time: slower on a GPU, and an error where there is none. On a CPU runs repeat anyway."""
    allow_bfloat16_weights: bool = False
    """Train weights that are themselves bfloat16, though plain AdamW loses small updates."""


class Checkpointing(Section):
    """When the state of a run is saved, so that the same command goes on from there, and what is kept of it."""

    every: PositiveInt | None = None
    """Save after this many steps."""
    minutes: PositiveFloat | None = 30.0
    """Save when this many minutes have passed since the last time; None: only as `every` says, and when a signal ends the run."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept, beside the best one and the one that was resumed from."""
    best: Gate | None = None
    """Metric of the evaluations by which the best checkpoint is kept."""
    load_best_at_end: bool = False
    """Evaluate and export the weights that were best by `best`, not the last ones."""


class Evaluation(Section):
    """When to evaluate, what to show, and what must be reached."""

    every: PositiveInt | None = None
    """Evaluate after this many steps, besides the evaluation at the end."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Comparisons shown with their rewards at each evaluation."""
    gates: dict[Gate, float] = Field(default={})
    """Values the final evaluation must reach, such as `{accuracy: 0.7}`; a missed gate ends the command with exit code 6."""


class Tracking(Section):
    """Where metrics go besides `metrics.jsonl`."""

    log_every: PositiveInt = 10
    """Steps between two log lines."""
    to: Annotated[tuple[Literal["wandb", "tensorboard", "trackio", "mlflow"], ...], Field(strict=False)] = ()
    """Trackers, each of which must be installed."""
    project: str = "rmtrain"
    """Project name in the trackers."""


class Hub(Section):
    """Upload of the exported model."""

    push: bool = False
    """Upload after a successful export."""
    id: str | None = None
    """Repository, as `owner/name`; None: `run.name` under the logged-in user."""
    public: bool = False
    """Make the repository public. Private otherwise."""


class Recipe(Section):
    """One run of rmtrain, said completely."""

    run: Run
    """Where the run lives."""
    data: Data
    """Rows to tokens."""
    model: Model
    """Tokens to rewards: `path` for a pretrained model, `scratch` for random weights."""
    lora: Lora | None = None
    """Low-rank adapters; None: all weights train."""
    batching: Batching = Batching()
    """Comparisons to micro-batches."""
    objective: Objectives = BradleyTerry()
    """Rewards to loss."""
    optimizer: Optimizer
    """Loss to updates."""
    training: Training = Training()
    """How long, and how many comparisons a step."""
    checkpoints: Checkpointing = Checkpointing()
    """When to save."""
    evaluation: Evaluation = Evaluation()
    """When to evaluate."""
    tracking: Tracking = Tracking()
    """Where metrics go."""
    hub: Hub = Hub()
    """Upload of the result."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        refuse(misfit for check in CROSS_CHECKS for misfit in check(self))
        return self


def _weights_fit(recipe: Recipe) -> Iterator[CrossFieldError]:
    model, frozen = recipe.model, recipe.lora is not None
    if model.quantization is not None and not frozen:
        yield CrossFieldError(
            ("model", "quantization"), f"{model.quantization} weights cannot train; add lora, or set null", ("model",)
        )
    if model.dtype == "bfloat16" and not frozen and not recipe.training.allow_bfloat16_weights:
        message = (
            "AdamW's small updates round to nothing in bfloat16; take float32, add lora, or set training.allow_bfloat16_weights"
        )
        yield CrossFieldError(("model", "dtype"), message, ("model",))


def _remote_code_is_pinned(recipe: Recipe) -> Iterator[CrossFieldError]:
    model = recipe.model
    if isinstance(model, PretrainedModel) and model.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", model.revision or ""):
        came = "nothing" if model.revision is None else f'"{model.revision}"'
        message = f"trust_remote_code needs a full commit hash of 40 hexadecimal digits here, got {came}"
        yield CrossFieldError(("model", "revision"), message, ("model", "trust_remote_code"))


def _sizes_fit(recipe: Recipe) -> Iterator[CrossFieldError]:
    longest, at = recipe.data.max_length, ("model", "scratch")
    if isinstance(recipe.model, ScratchModel):
        sizes = recipe.model.scratch
        if sizes.hidden_size % sizes.heads:
            message = f"expected a divisor of hidden_size ({sizes.hidden_size}), got {sizes.heads}"
            yield CrossFieldError((*at, "heads"), message, (*at, "hidden_size"))
        if sizes.key_value_heads is not None and sizes.heads % sizes.key_value_heads:
            message = f"expected a divisor of heads ({sizes.heads}), got {sizes.key_value_heads}"
            yield CrossFieldError((*at, "key_value_heads"), message, (*at, "heads"))
        if longest > sizes.max_positions:
            message = f"expected at most model.scratch.max_positions ({sizes.max_positions}), got {longest}"
            yield CrossFieldError(("data", "max_length"), message, (*at, "max_positions"))
    if recipe.batching.max_tokens != "auto" and recipe.batching.max_tokens < longest:
        message = f"expected at least data.max_length ({longest}), got {recipe.batching.max_tokens}"
        yield CrossFieldError(("batching", "max_tokens"), message, ("data", "max_length"))


def _sources_fit(recipe: Recipe) -> Iterator[CrossFieldError]:
    yield from sources_misfits(recipe.data.train, recipe.data.eval, isinstance(recipe.objective, PlackettLuce))


def _evaluation_has_data(recipe: Recipe) -> Iterator[CrossFieldError]:
    for i, source in enumerate(recipe.data.eval):
        if source.holdout is not None:
            message = "all of an evaluation source is evaluated already; remove it, or move the source to data.train"
            yield CrossFieldError(("data", "eval", i, "holdout"), message, ("data", "eval", i))
    if recipe.data.eval or any(source.holdout for source in recipe.data.train):
        return
    evaluation, best = recipe.evaluation, recipe.checkpoints.best
    for section, name, value in (
        ("evaluation", "every", evaluation.every),
        ("evaluation", "gates", evaluation.gates),
        ("checkpoints", "best", best),
    ):
        if value:
            message = "there is nothing to evaluate; add data.eval, or holdout to a source of data.train"
            yield CrossFieldError((section, name), message, (section,))


def _best_is_known(recipe: Recipe) -> Iterator[CrossFieldError]:
    if recipe.checkpoints.load_best_at_end and recipe.checkpoints.best is None:
        message = "nothing says which checkpoint is best; set checkpoints.best, such as accuracy"
        yield CrossFieldError(("checkpoints", "load_best_at_end"), message, ("checkpoints",))


def _repository_has_owner(recipe: Recipe) -> Iterator[CrossFieldError]:
    if recipe.hub.id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.hub.id):
        yield CrossFieldError(("hub", "id"), f'expected owner/name, got "{recipe.hub.id}"', ("hub",))


CROSS_CHECKS = (
    _weights_fit,
    _remote_code_is_pinned,
    _sizes_fit,
    _sources_fit,
    _evaluation_has_data,
    _best_is_known,
    _repository_has_owner,
)
