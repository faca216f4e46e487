"""The optimizer of a recipe: AdamW and the learning rate by step."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rmtrain.recipe.key_aliases import OrAlias
from rmtrain.recipe.section import Conflict, Section, Share, ShareOrSteps

SCHEDULE_KEYS = {
    "linear": ("min_lr",),
    "cosine": ("min_lr",),
    "cosine_with_restarts": ("cycles",),
    "warmup_stable_decay": ("min_lr", "decay"),
}
"""The keys of `optimizer` that a schedule uses in addition to those of every schedule."""
NEEDED = {"cycles": "the number of cycles, such as 3", "decay": "a share of all steps, such as 0.2, or a number of steps"}
"""What a key without a default expects."""


class Optimizer(Section):
    """AdamW and the learning-rate schedule, which depends on the step only."""

    name: Annotated[Literal["adamw", "adamw_8bit"], OrAlias] = "adamw"
    """`adamw_8bit` keeps its state in 8 bits through bitsandbytes (extra `8bit`). Names of transformers that mean the same, such as
    `adamw_torch`, are accepted here and in `schedule`, `precision` and `dtype`."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate."""
    head_lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate of the score head, which often starts with random weights; `null`: `lr`. The schedule scales both alike."""
    min_lr: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Learning rate at the end of a `linear`, `cosine` or `warmup_stable_decay` schedule; `null`: zero."""
    schedule: Annotated[
        Literal["linear", "cosine", "cosine_with_restarts", "constant", "inverse_sqrt", "warmup_stable_decay"], OrAlias
    ] = "linear"
    """Learning rate after warm-up, by the names and formulas of transformers. `linear` and half a `cosine` fall to `min_lr`;
    `cosine_with_restarts` falls to zero `cycles` times; `inverse_sqrt` falls with the square root of the step; `warmup_stable_decay`, or
    `wsd`, is constant until half a cosine falls to `min_lr` in the last `decay` steps."""
    warmup: ShareOrSteps = 0.0
    """Steps in which the rate rises linearly: a share of all steps, such as `0.1`, or a whole number of steps, such as `100`."""
    decay: ShareOrSteps | None = None
    """Length of the decay at the end of `warmup_stable_decay`: a share of all steps, or a whole number of steps."""
    cycles: PositiveInt | None = None
    """Number of times that `cosine_with_restarts` falls to zero."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of matrices; biases and norms are not decayed."""
    clip: PositiveFloat | None = 1.0
    """Maximum global gradient norm; `null`: no clipping."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _needs_min_lr(cls, schedule: Any, info: ValidationInfo) -> Any:
        # In transformers this name is an error without a minimum; as an alias of cosine it would fall to zero instead.
        if schedule == "cosine_with_min_lr" and info.data.get("min_lr", 0.0) is None:
            message = "cosine_with_min_lr needs min_lr; set optimizer.min_lr, or use cosine"
            raise PydanticCustomError("conflict", "{message}", {"message": message, "depends_on": ("optimizer",)})
        return schedule

    def conflicts(self) -> Iterator[Conflict]:
        """Keys of other schedules are refused, and those that a schedule needs are set."""
        used = SCHEDULE_KEYS.get(self.schedule, ())
        for key in dict.fromkeys(key for keys in SCHEDULE_KEYS.values() for key in keys):
            owners = [name for name, keys in SCHEDULE_KEYS.items() if key in keys]
            if getattr(self, key) is not None and key not in used:
                yield Conflict((key,), f"not used by {self.schedule}, only by {', '.join(owners)}; remove it")
            elif getattr(self, key) is None and key in used and key != "min_lr":
                yield Conflict((key,), f"{self.schedule} needs it; set {NEEDED[key]}", ("schedule",))
        if self.min_lr is not None and self.min_lr >= self.lr:
            yield Conflict(("min_lr",), f"expected less than lr ({self.lr}), got {self.min_lr}", ("lr",))
        if self.decay is not None and self.decay < 1 and self.warmup < 1 and self.decay + self.warmup > 1:
            message = (
                f"warm-up ({self.warmup}) and decay ({self.decay}) are shares of all steps, and more than 1 together; lower one"
            )
            yield Conflict(("decay",), message)
