"""The part of a recipe that an evaluation reads, for models that come without one."""

from rmtrain.recipe.schema import Batching, BradleyTerry, Data, Objectives, Training
from rmtrain.recipe.section import Section


class EvaluationRecipe(Section):
    """Sections of `rmtrain eval MODEL --data FILE`; overrides may set their keys."""

    data: Data
    """Rows to tokens; only `data.eval` is scored."""
    batching: Batching = Batching()
    """Comparisons to micro-batches."""
    objective: Objectives = BradleyTerry()
    """Rewards to loss."""
    training: Training = Training()
    """Only `training.precision` is read."""
