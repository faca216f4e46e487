"""The model and lora sections of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, Tag

from rmtrain.recipe.section import Section, Share


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
