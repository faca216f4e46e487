"""The objective of a recipe: what rewards are trained towards, for preferences, for targets, or with a function of one's own."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveFloat

from rmtrain.recipe.section import Conflict, Hooked, KeyPath, Section, kind, kind_by


class ObjectiveBase(Section):
    """Keys of every objective."""

    router_balance: PositiveFloat | None = None
    """Coefficient of the loss that balances the experts of a mixture (arXiv:2101.03961), which trains in addition to the objective and is
    part of neither `train/loss` nor `eval/loss`. The Hub's mixtures use 0.001 to 0.02 (`router_aux_loss_coef`)."""
    weight: PositiveFloat = 1.0
    """Factor of the loss, which matters where `by_source` adds several up."""


class BradleyTerry(ObjectiveBase):
    """`-log sigmoid(r_winner - r_loser - margin)`, averaged over the preferences of a comparison, then over comparisons."""

    type: Literal["bradley_terry"] = "bradley_terry"
    """Kind of objective."""
    margin: Literal["subtract", "scale", "none"] = "subtract"
    """Use of the margins of rows: `subtract` them inside the sigmoid (arXiv:2307.09288), `scale` the loss of each preference by its margin,
    `-margin log sigmoid(r_winner - r_loser)` (scaled Bradley-Terry, arXiv:2410.01257, eq. 3), or `none`."""
    center_rewards: PositiveFloat | None = None
    """Coefficient of `(r_winner + r_loser)^2`, which keeps rewards near zero (arXiv:2312.09244, eq. 2). TRL's docs suggest 0.01."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of wrong labels; keeps the rewards of noisy comparisons from drifting apart."""


class PlackettLuce(ObjectiveBase):
    """The likelihood of each comparison's whole ranking: the best is chosen among all, the second among the rest, and so on."""

    type: Literal["plackett_luce"]
    """Kind of objective."""
    center_rewards: PositiveFloat | None = None
    """Coefficient of `(r_winner + r_loser)^2`, averaged over the preferences (arXiv:2312.09244, eq. 2)."""


class Regression(ObjectiveBase):
    """The squared error of rewards against standardised targets, `(r - (target - mean) / std)^2`, of sources with `format: scored`."""

    type: Literal["regression"]
    """Kind of objective."""
    huber: PositiveFloat | None = None
    """Threshold of Huber's loss, in standard deviations: beyond it an error costs its size and not its square. `null`: squared error."""
    mean: FiniteFloat | None = None
    """Mean that is subtracted from targets; `null`: that of the training rows. The model keeps both: `reward * std + mean` is a target."""
    std: PositiveFloat | None = None
    """Standard deviation that targets are divided by; `null`: that of the training rows."""


class Binary(ObjectiveBase):
    """Logistic loss of rewards as log-odds of being right, for sources with `format: scored` and targets from 0 to 1."""

    type: Literal["binary"]
    """Kind of objective."""


class OwnObjective(Hooked, ObjectiveBase):
    """A function of your own: `loss(rewards, labels)` returns the sum of the loss over the comparisons of a micro-batch.

    `rewards` is a float tensor with one value for each response, `labels` a `LabelBatch` with preferences and targets. Multiply by its
    weights: a comparison of weight 0 is there only to keep the processes in step.
    """

    type: Literal["function"]
    """Kind of objective."""
    path: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*\.py:[A-Za-z_]\w*$")]
    """`FILE.py:FUNCTION`, next to the recipe. The file is copied into the run, and a change of it is a change of the recipe."""


OneObjective = Annotated[
    Annotated[BradleyTerry, kind("bradley_terry")]
    | Annotated[PlackettLuce, kind("plackett_luce")]
    | Annotated[Regression, kind("regression")]
    | Annotated[Binary, kind("binary")]
    | Annotated[OwnObjective, kind("function")],
    kind_by("type", default="bradley_terry"),
]


class BySource(ObjectiveBase):
    """An objective for each source, such as Bradley-Terry for pairs and `binary` for answers that a verifier has checked. Losses add up."""

    type: Literal["by_source"]
    """Kind of objective."""
    sources: Annotated[dict[str, OneObjective], Field(min_length=1)]
    """Objective of each source, by its tag."""
    others: OneObjective = BradleyTerry()
    """Objective of the sources that are not named."""

    def conflicts(self) -> Iterator[Conflict]:
        """Routers are those of the model, whatever the source."""
        for key, part in objective_keys(self):
            if part.router_balance is not None:
                yield Conflict((*key, "router_balance"), "is not a matter of sources; set objective.router_balance")


Objectives = Annotated[
    Annotated[BradleyTerry, kind("bradley_terry")]
    | Annotated[PlackettLuce, kind("plackett_luce")]
    | Annotated[Regression, kind("regression")]
    | Annotated[Binary, kind("binary")]
    | Annotated[OwnObjective, kind("function")]
    | Annotated[BySource, kind("by_source")],
    kind_by("type", default="bradley_terry"),
]


def objective_for(objective: Objectives, source: str) -> OneObjective:
    """Return the objective of the rows of a source, by its tag."""
    return objective.sources.get(source, objective.others) if isinstance(objective, BySource) else objective


def objective_keys(objective: Objectives) -> list[tuple[KeyPath, OneObjective]]:
    """Return the objectives that add up, each with its key below `objective`."""
    if not isinstance(objective, BySource):
        return [((), objective)]
    return [*((("sources", tag), part) for tag, part in objective.sources.items()), (("others",), objective.others)]
