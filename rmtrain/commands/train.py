"""`rmtrain train`: the whole run, read from top to bottom."""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console, Group, RenderableType
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Costs, Plan, check_budget
from rmtrain.commands.result import CommandResult
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks.audit import audit, check_rankings
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.checkpoint_manager import CheckpointManager, CheckpointMetadata
from rmtrain.engine.distributed import leave_group, model_device, run_on_main
from rmtrain.engine.loop import train as run_loop
from rmtrain.engine.memory import peak_memory, token_budget
from rmtrain.engine.optim import build_optimizer, warn_of_lost_updates
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Display, Meter, RunLog
from rmtrain.engine.signals import Stop
from rmtrain.engine.start import environment, start, start_trackers, uses_bfloat16, versions
from rmtrain.engine.state_dict import Tensors, restore_model
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError, RecipeError, RmtrainError, Stopped
from rmtrain.evaluation.samples import sample_rows
from rmtrain.evaluation.score import Evaluation, check_gates, evaluate
from rmtrain.evaluation.scores_file import write_scores
from rmtrain.model.build import build_reward_model
from rmtrain.model.export import check_exportable, export_model, golden_texts
from rmtrain.model.hub import push
from rmtrain.model.layout_probe import choose_layout, probing_comparisons
from rmtrain.model.load import template_hash
from rmtrain.model.reward_model import RewardModel, trainable_summary, unwrap
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import PlackettLuce, PretrainedModel, Recipe
from rmtrain.report.card import card_of
from rmtrain.report.console import compact
from rmtrain.report.page import pictures, with_errors, write_report
from rmtrain.report.progress import ReadingDisplay, make_display
from rmtrain.report.tables import evaluation_summary, findings_notes, next_steps, run_header, sample_table, waterfall_table

logger = logging.getLogger("rmtrain")

MOMENTS = {"adamw": 2.0, "adamw_8bit": 0.5}
"""What the state of an optimizer takes, in weights; below it only by little."""


def train(recipe: Recipe, console: Console | None = None, *, fresh: bool = False, resume: Path | None = None) -> CommandResult:
    """Train, evaluate and export a reward model; a run that was interrupted goes on where its last checkpoint is.

    Args:
        recipe: what to do.
        console: where the run is shown; None: stderr.
        fresh: move an older run in `run.output_dir` aside and begin anew.
        resume: the checkpoint to go on from; None: the newest that is undamaged.

    Raises:
        RmtrainError: with one line per problem; nothing is written before the recipe, the data and the model have been accepted.
        Stopped: a signal ended the run after a step and a checkpoint.
    """
    if fresh and resume is not None:
        raise RecipeError("--fresh begins anew and --resume goes on; choose one")
    strategy = start(recipe)
    accelerator = strategy.accelerator
    console = (console or Console(stderr=True)) if accelerator.is_main_process else Console(quiet=True)
    directory = run_on_main(accelerator, partial(RunDirectory.claim, recipe, fresh))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingDisplay(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    findings = audit(prepared, recipe.data, tokenizer)["splits"]
    for note in findings_notes(findings):
        console.print(Text(f"note: {note}"))
    model = build_model(recipe, tokenizer, accelerator)
    layout = choose_layout(model, recipe.batching.layout, probing_comparisons(prepared.train), tokenizer.pad_token_id)
    budget = agreed_budget(recipe, prepared.train, layout, model, accelerator)
    plan = make_plan(recipe, prepared, layout, budget, accelerator.num_processes)
    loader = StepLoader(prepared.train, plan, layout, tokenizer.pad_token_id, accelerator.process_index)
    meter, contents = Meter(accelerator, flos_per_token(model)), CheckpointMetadata.of(model, order_facts(recipe, prepared))
    parameters = trainable_summary(model)
    prepared_model, optimizer = strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
    saver = CheckpointManager(strategy, prepared_model, optimizer, meter, directory, recipe.checkpoints, contents)
    run = Running(recipe, strategy, directory, tokenizer, prepared, unwrap(prepared_model), layout, saver, findings, parameters)
    display = make_display(console, len(loader), accelerator.num_processes)
    with run.opened(console, plan, resume) as log, display, Stop() as stop:
        evaluator = run.evaluator(prepared_model, log, display, stop)
        try:
            last = run_loop(recipe, strategy, prepared_model, optimizer, loader, meter, log, display, evaluator, saver, stop)
            return run.finish(last, evaluator, stop)
        except Stopped as stopped:
            raise Stopped(stopped.signal, run.how_to_go_on(stopped)) from None


def order_facts(recipe: Recipe, prepared: PreparedData) -> dict[str, Any]:
    """What the order of the comparisons depends on: a run goes on only with the same."""
    training = recipe.training
    return {
        "data": prepared.train.key,
        "seed": recipe.run.seed,
        "batch_size": training.batch_size,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
    }


def agreed_budget(recipe: Recipe, data: TokenizedData, layout: Layout, model: RewardModel, accelerator: Accelerator) -> int:
    """The tokens of a micro-batch, for all processes those of the main one: each GPU has other memory free."""
    return run_on_main(accelerator, partial(token_budget, recipe.batching.max_tokens, Costs.of(data, layout), model))


def make_plan(recipe: Recipe, prepared: PreparedData, layout: Layout, max_tokens: int, world: int) -> Plan:
    """The plan of a recipe's training data; raises RecipeError when a comparison of either split is above the budget."""
    costs = Costs.of(prepared.train, layout)
    check_budget(costs, prepared.train.ids, max_tokens)
    if len(prepared.eval) and recipe.batching.max_tokens != "auto":
        check_budget(Costs.of(prepared.eval, layout), prepared.eval.ids, max_tokens)
    if isinstance(recipe.objective, PlackettLuce):
        check_rankings(prepared.train[number] for number in range(len(prepared.train)))
    return Plan.of(recipe, costs, max_tokens, world)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> RewardModel:
    """The whole model on the device of this process, computing in the recipe's precision; raises as `check_model` does."""
    set_seed(recipe.run.seed)
    model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed).to(model_device(accelerator))
    model.autocast = uses_bfloat16(recipe.training.precision)
    check_model(model, tokenizer, recipe)
    return model


def check_model(model: RewardModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Refuse before training what would fail after it: sequences beyond the model's positions, or an export that cannot be loaded.

    Raises:
        RecipeError: `data.max_length` is more than the model has positions for, or as `check_exportable` says.
    """
    max_length = recipe.data.max_length
    if model.longest is not None and max_length > model.longest:
        raise RecipeError(f"data.max_length: expected at most {model.longest}, the positions of the model, got {max_length}")
    check_exportable(model, tokenizer, golden_texts(tokenizer, max_length))
    warn_of_lost_updates(model, recipe.training, recipe.optimizer.lr)


def flos_per_token(model: RewardModel) -> int:
    """Floating-point operations of a token, forward and backward: 6 for each parameter that is no embedding (arXiv:2001.08361, 2.1)."""
    return 6 * int(model.core.num_parameters(exclude_embeddings=True))


@dataclass(frozen=True, slots=True)
class Running:
    """A run that has begun: what it is made of, what it shows, and what it leaves."""

    recipe: Recipe
    strategy: Strategy
    directory: RunDirectory
    tokenizer: Any
    prepared: PreparedData
    model: RewardModel
    layout: Layout
    saver: CheckpointManager
    findings: dict[str, Any]
    parameters: dict[str, dict[str, int]]

    @property
    def accelerator(self) -> Accelerator:
        """The processes."""
        return self.strategy.accelerator

    @contextmanager
    def opened(self, console: Console, plan: Plan, resume: Path | None) -> Iterator[RunLog]:
        """The directory taken for as long as the run goes on, from its checkpoint where there is one; where its numbers go."""
        hashes = {
            "data": self.prepared.train.key,
            "tokenizer": self.prepared.tokenizer_fingerprint,
            "template": str(template_hash(self.tokenizer)),
        }
        if resume is not None and not self.directory.continues:
            raise CheckpointError(f"--resume {resume}: {self.directory.path} holds no run yet")
        run_on_main(
            self.accelerator,
            partial(self.directory.open, self.recipe, environment(self.strategy, self.recipe.training.precision, hashes)),
        )
        trackers = None
        try:
            console.print(self._header(plan))
            if self.directory.continues:
                self.saver.resume(resume)
            if self.saver.position.step < plan.total_steps:
                self.saver.check_room(MOMENTS[self.recipe.optimizer.name])
            trackers = start_trackers(self.accelerator, self.recipe, self.directory)
            yield RunLog(self.accelerator, self.directory.path, trackers)
        finally:
            if trackers is not None:
                trackers.close()
            self.directory.close()

    def how_to_go_on(self, stopped: Stopped) -> str:
        """The line that ends a run that was stopped."""
        by, path = f"stopped by {stopped.signal.name}", self.directory.path
        if self.directory.is_finished:
            return f"{by} during the upload; the run is finished, and its model is in {self.directory.model}"
        if self.saver.saved_step is None:
            return f"{by} before its first step was saved; the same command begins it anew"
        return f"{by} after step {self.saver.saved_step}, which is saved in {path}; the same command goes on from there"

    def evaluator(self, model: Any, log: RunLog, display: Display, stop: Stop) -> Any:
        """What the loop calls to evaluate at a step; None when there is nothing to evaluate on."""
        data, recipe = self.prepared.eval, self.recipe
        if not len(data):
            return None

        budget = agreed_budget(recipe, data, self.layout, self.model, self.accelerator)

        def evaluate_at(step: int) -> Evaluation:
            check = partial(stop.check, self.accelerator)
            evaluation = evaluate(model, data, self.layout, self.accelerator, self.tokenizer.pad_token_id, budget, check)
            samples = sample_rows(data, evaluation.scored, self.tokenizer, recipe.evaluation.samples)
            log.metrics(step, evaluation.metrics())
            log.samples(step, samples)
            log.pictures(step, pictures(evaluation.scored))
            display.show(evaluation_summary(evaluation.summary, f"evaluation at step {step}"))
            if samples:
                display.show(sample_table(samples))
            return evaluation

        return evaluate_at

    def finish(self, last: Evaluation | None, evaluator: Any, stop: Stop) -> CommandResult:
        """On the main process, export the model with its scores and its card, push it if the recipe says so, and sum up."""
        recipe, path, done = self.recipe, self.directory.path, self.saver.position.step
        best = self.saver.load_best() if recipe.checkpoints.load_best_at_end else None
        if best is not None:
            logger.info("the weights after step %d were best by %s; they are exported", best, recipe.checkpoints.best)
            last = evaluator(done)
        summary = None if last is None else last.summary
        url, problem = None, None
        gathered, peaks = self.strategy.weights(self.saver.model) if self.strategy.shards else None, peak_memory(self.accelerator)
        leave_group(self.accelerator)  # the others are done; nobody waits for the export
        if self.accelerator.is_main_process:
            with stop.at_once():
                self._leave(self._exported(gathered), last, summary, done if best is None else best)
                self.directory.finish()
                url, problem = push_if_asked(recipe, self.directory.model)
        document = {
            "directory": str(path.resolve()),
            "model": str(self.directory.model.resolve()),
            "evaluation": summary,
            "gates": {} if summary is None else check_gates(summary, recipe.evaluation.gates),
            "hub": url,
            "hub_problem": problem,
            "peak_memory": peaks,
        }
        lines = [f"model         {self.directory.model}, reloaded and checked", f"memory        {_peaks(peaks)}"]
        return CommandResult(Text("\n" + "\n".join(lines)), document, _what_next(path))

    def _exported(self, gathered: Tensors | None) -> RewardModel:
        """The model to export: of one that processes hold in pieces, another with its gathered weights."""
        if gathered is None:
            return self.model
        whole = build_reward_model(self.recipe.model, self.recipe.lora, self.tokenizer, self.recipe.run.seed)
        restore_model(whole, gathered)
        return whole

    def _leave(self, model: RewardModel, last: Evaluation | None, summary: dict[str, Any] | None, step: int) -> None:
        recipe, path = self.recipe, self.directory.path
        if last is not None:
            write_scores(path / "scores.jsonl", last.scored)
        facts = {
            "recipe_sha256": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
            "data_key": self.prepared.train.key,
            "max_length": recipe.data.max_length,
            "step": step,
        }
        export_model(model, self.tokenizer, self.directory.model, golden_texts(self.tokenizer, recipe.data.max_length), facts)
        shutil.copyfile(self.directory.model / "golden.json", path / "golden.json")
        card = card_of(
            recipe,
            self.tokenizer,
            waterfall=self.prepared.train.waterfall.to_json(),
            evaluation=summary,
            versions=versions(),
        )
        (self.directory.model / "README.md").write_text(card, encoding="utf-8")
        self._report(last)

    def _report(self, last: Evaluation | None) -> None:
        recipe, path, prepared = self.recipe, self.directory.path, self.prepared
        splits = {"train": prepared.train, "eval": prepared.eval}
        write_report(
            path / "report.html",
            recipe.run.name,
            None if last is None else with_errors(last, prepared.eval, self.tokenizer),
            gates={} if last is None else check_gates(last.summary, recipe.evaluation.gates),
            recipe=recipe,
            run=path,
            waterfall={name: data.waterfall.to_json() for name, data in splits.items() if len(data)},
            findings=self.findings,
        )

    def _header(self, plan: Plan) -> RenderableType:
        recipe, accelerator = self.recipe, self.accelerator
        model = (
            recipe.model.path
            if isinstance(recipe.model, PretrainedModel)
            else f"{recipe.model.scratch.architecture} from scratch"
        )
        computing = "bfloat16" if uses_bfloat16(recipe.training.precision) else "float32"
        processes = f"{accelerator.num_processes} × {accelerator.device.type}"
        header = run_header(
            name=recipe.run.name,
            directory=str(self.directory.path),
            device=f"{processes}, {self.strategy.name}, computing in {computing}",
            model=model,
            parameters=sum(self.parameters["total"].values()),
            trainable=sum(self.parameters["trainable"].values()),
            comparisons=len(self.prepared.train),
            tokens=int(self.prepared.train.total_tokens.sum()),
            steps=plan.total_steps,
            batch_size=plan.batch_size,
            notes={"layout": _account(plan, self.layout)},
        )
        return Group(waterfall_table(self.prepared.train.waterfall.to_json()), Text(), header, Text())


def _peaks(peaks: Sequence[int]) -> str:
    """The most that each rank held."""
    by_rank = ", ".join(f"{peak / 1e9:.2f}" for peak in peaks)
    return f"at most {by_rank} GB" + (f" on ranks 0 to {len(peaks) - 1}" if len(peaks) > 1 else "")


def push_if_asked(recipe: Recipe, model: Path) -> tuple[str | None, str | None]:
    """The address of an upload that the recipe asks for, and what is wrong where it failed: the run is finished all the same."""
    if not recipe.hub.push:
        return None, None
    try:
        return push(model, recipe.hub, recipe.run.name), None
    except RmtrainError as error:
        return None, "; ".join(error.problems)


def _account(plan: Plan, layout: Layout) -> str:
    """The layout, with the tokens of an epoch in it and what batches padded to their longest row would take."""
    padded, computed = plan.padded_epoch(), plan.computed_epoch()
    return (
        f"{layout}: {compact(computed)} tokens an epoch, {padded / computed:.1f} times fewer than {compact(padded)} in padded batches; "
        f"about {plan.micro_batches_per_step():.1f} micro-batches a step of at most {plan.max_tokens:,}"
    )


def _what_next(path: Path) -> Text:
    commands = [
        ("see how good it is, and where it is fooled", f"{path}/report.html"),
        ("evaluate it again, on other pairs, or in CI", f"rmtrain eval {path} --fail-under accuracy=0.7"),
        ("load it anywhere", f'AutoModelForSequenceClassification.from_pretrained("{path}/model")'),
    ]
    return next_steps(commands)
