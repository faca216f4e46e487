"""Evaluations during the training: on the evaluation data, and on public benchmarks, through one path and one line of the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs
from rmtrain.commands.evaluate_scores import gate_names, gate_values
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.text.encoder import Encoder, LengthPolicy
from rmtrain.engine.memory import scoring_budget
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.run_log import RunLog
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.benchmarks.base import Item
from rmtrain.evaluation.benchmarks.encoded import EncodedBenchmark
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS, measure
from rmtrain.evaluation.benchmarks.published import read_items
from rmtrain.evaluation.diagnosis import sample_rows
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.evaluation.scores_file import ScoredComparison, write_scores
from rmtrain.evaluation.scoring import ScoringPlan, TokenizedRows, evaluate
from rmtrain.files import expanded
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import template_hash
from rmtrain.recipe.schema import EvaluationSection, Objectives, Recipe
from rmtrain.report.evaluation_view import benchmark_table, evaluation_summary, sample_table
from rmtrain.report.plots import pictures


def read_benchmarks(evaluation: EvaluationSection) -> dict[str, list[Item]]:
    """Read the rows of the benchmarks of a recipe, by name.

    Raises:
        DataError: rows that are missing, or not of the benchmark. RecipeError: a gate on a section that its benchmark does not have.
    """
    chosen = [BENCHMARKS[each.name] for each in evaluation.benchmarks]
    known = gate_names(chosen)
    for gate in evaluation.gates.keys() - evaluation.pair_gates.keys() - known.keys():
        sections = [name for name in known if name.startswith(gate.partition(".")[0] + ".")]
        raise RecipeError(f"evaluation.gates.{gate}: no such section; expected one of {', '.join(sections)}")
    rows: dict[str, list[Item]] = {}
    for each, benchmark in zip(evaluation.benchmarks, chosen, strict=True):
        try:
            rows[each.name] = read_items(benchmark, None if each.path is None else expanded(each.path))
        except DataError as error:
            raise DataError(*(f"evaluation.benchmarks: {problem}" for problem in error.problems)) from error
    return rows


@dataclass(frozen=True, slots=True)
class Measured:
    """A benchmark after a step: its scored rows, all of its numbers, and what they depend on."""

    step: int
    scored: list[ScoredComparison]
    numbers: dict[str, Any]
    settings: dict[str, Any]


class Evaluator:
    """Evaluates the model at a step, and logs the results. The micro-batches are the same each time, and planned once.

    Args:
        rows: the evaluation data, which may be empty.
        items: the rows of the recipe's benchmarks, by name, see `read_benchmarks`.
        layout: of the model.
        last: the last step of the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: Objectives,
        tokenizer: PreTrainedTokenizerBase,
        rows: TokenizedData,
        items: Mapping[str, Sequence[Item]],
        model: RewardModel,
        layout: Layout,
        strategy: Strategy,
        log: RunLog,
        shutdown: GracefulShutdown,
        last: int,
    ) -> None:
        self.recipe, self.objective, self.tokenizer, self.rows, self.last = recipe, objective, tokenizer, rows, last
        self.strategy, self.log, self.shutdown = strategy, log, shutdown
        self.plan: ScoringPlan | None = None
        if len(rows):
            costs = Costs.of(rows, layout)
            budget = scoring_budget(recipe.batching.max_tokens, costs)
            self.plan = ScoringPlan.of(rows, layout, costs, budget, tokenizer.pad_token_id)
        # As `rmtrain eval --benchmark` scores: whole rows, which lose their beginning where the model takes no more.
        policy = LengthPolicy(model.declared_positions, overlong="cut")
        self.max_length = policy.max_length
        self.of_model = {
            "dtype": model.computing,
            "max_length": policy.max_length,
            "overlong": policy.overlong,
            "template_sha256": template_hash(tokenizer),
        }
        encoder = Encoder(tokenizer, policy) if items else None
        self.benchmarks: dict[str, tuple[EncodedBenchmark, ScoringPlan]] = {}
        for name, of_benchmark in items.items():
            assert encoder is not None
            encoded = EncodedBenchmark.of(BENCHMARKS[name], of_benchmark, encoder)
            data = TokenizedRows(encoded.comparisons)
            costs = Costs.of(data, layout)
            budget = max(scoring_budget(recipe.batching.max_tokens, costs), int(costs.tokens.max()))
            self.benchmarks[name] = encoded, ScoringPlan.of(data, layout, costs, budget, tokenizer.pad_token_id)
        self.every = {each.name: each.every for each in recipe.evaluation.benchmarks}
        self.measured: dict[str, Measured] = {}

    @property
    def has_data(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.plan is not None or bool(self.benchmarks)

    def __call__(self, step: int, *, final: bool = False) -> EvaluationResult | None:
        """Evaluate at a step on the evaluation data, if there is any, and on the benchmarks that are due; all are if it is the last one.

        Args:
            final: nothing follows, although the step may not be the last of the run.
        """
        evaluation, samples = None, []
        if self.plan is not None:
            evaluation = evaluate(self.strategy.model, self.plan, self.strategy.accelerator, self.objective, self.shutdown.check)
            samples = sample_rows(self.rows, evaluation.scored, self.tokenizer, self.recipe.evaluation.samples)
        is_end = final or step == self.last
        due = [name for name, every in self.every.items() if is_end or every is None or step % every == 0]
        for name in due:
            self._measure(name, step)
        self._log(step, evaluation, samples, due)
        return evaluation

    def finish(self, step: int, evaluation: EvaluationResult | None) -> None:
        """Evaluate on the benchmarks that were not due at the step at which the run ended early, after its evaluation there."""
        left = [name for name in self.benchmarks if name not in self.measured or self.measured[name].step != step]
        for name in left:
            self._measure(name, step)
        if left:
            self._log(step, evaluation, [], list(self.benchmarks))

    @property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """The last numbers of each benchmark, as `measure` returns them."""
        return {name: measured.numbers for name, measured in self.measured.items()}

    def write_scores(self, directory: Path) -> None:
        """Write the last scores of each benchmark to `benchmarks/NAME` of a run, where `rmtrain eval RUN --benchmark NAME` would."""
        for name, measured in self.measured.items():
            write_scores(directory / "benchmarks" / name / "scores.jsonl", measured.scored, measured.settings)

    def _measure(self, name: str, step: int) -> None:
        encoded, plan = self.benchmarks[name]
        scored = encoded.score(self.strategy.model, plan, self.strategy.accelerator, self.shutdown.check)
        numbers = measure(encoded.benchmark, scored)
        numbers["warnings"] += encoded.warnings(self.max_length)
        settings = encoded.settings(str(expanded(self.recipe.run.output_dir) / "model"), plan.layout, self.of_model)
        self.measured[name] = Measured(step, scored, numbers, settings)

    def _log(
        self, step: int, evaluation: EvaluationResult | None, samples: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> None:
        """Log an evaluation and the benchmarks that were measured at its step, in one line of metrics."""
        values = gate_values([self.benchmarks[name][0].benchmark for name in names], self.numbers)
        of_benchmarks = {f"eval/{name}": float(value) for name, value in values.items() if value is not None}
        self.log.metrics(step, {**({} if evaluation is None else evaluation.metrics()), **of_benchmarks})
        count, more = self.recipe.evaluation.samples, []
        for name in names:
            more += self.benchmarks[name][0].samples(self.measured[name].scored, self.tokenizer, count)
        self.log.samples(step, [*samples, *more])
        if evaluation is not None:
            self.log.pictures(step, pictures(evaluation))
            self.log.show(evaluation_summary(evaluation.summary, f"evaluation at step {step}"))
        for name in names:
            self.log.show(benchmark_table(self.measured[name].numbers))
        if samples:
            self.log.show(sample_table(samples))
