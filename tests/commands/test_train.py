"""A whole run: what it leaves, that its export is the model it trained, and that what it learned is what was there to learn."""

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rmtrain.command_line.model_options import EvalOptions, ExportOptions
from rmtrain.commands.evaluate import evaluate, run_eval
from rmtrain.commands.export import export
from rmtrain.commands.train import train
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.evaluation.scores_file import read_scores
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import BradleyTerry, PretrainedModel
from rmtrain.report.console import decimal
from tests.forks import rmtrain
from tests.runs import ROOT, metrics_of, planted_rows, tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)
SEED_NAMES = {
    "train/loss",
    "train/accuracy",
    "train/margin",
    "train/grad_norm",
    "train/learning_rate",
    "train/epoch",
    "train/global_step",
    "total_flos",
}
SEED_EVAL_NAMES = {"eval/loss", "eval/accuracy", "eval/runtime", "eval/samples_per_second", "eval/steps_per_second"}


def test_a_run_leaves_everything_the_contract_names(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, evaluation={"every": 2, "samples": 2})
    outcome = train(recipe, QUIET)
    run = tmp_path / "run"
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "scores.jsonl", "golden.json"):
        assert (run / name).is_file(), name
    assert (run / "model/model.safetensors").is_file()
    assert load_recipe(run / "recipe.yaml") == recipe
    lines = metrics_of(run)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert set(training[0]) >= SEED_NAMES
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert set(evaluations[0]) >= SEED_EVAL_NAMES
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [2, 2, 4, 4, 6, 6]
    assert samples[0]["id"] == samples[4]["id"]
    assert samples[0]["rewards"] != samples[4]["rewards"], "guard: the model changed between the evaluations"
    assert outcome.document["evaluation"]["n"] == 16


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("positions", [24, 128])
def test_rows_longer_than_the_model_warn(positions: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rotary model can be trained on more tokens than its configuration declares, where benchmarks and servers cut."""
    (tmp_path / "first").mkdir()
    first = tiny_recipe(tmp_path / "first", training={"max_steps": 1})
    train(first, QUIET)
    config = tmp_path / "first/run/model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": positions}))
    train(tiny_recipe(tmp_path, model=PretrainedModel(path=str(config.parent)), training={"max_steps": 1}), QUIET)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warnings if "data.max_length" in text and "24" in text] == (warnings if positions == 24 else [])
    assert len(warnings) == (positions == 24), "guard"


@pytest.mark.usefixtures("no_reload")
def test_a_mixture_reports_experts_and_balance(tmp_path: Path) -> None:
    """The header says what is adapted; the balance is a metric of its own, in neither loss; a model without a router is refused."""
    sizes = {"architecture": "mixtral", "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "vocab_size": 400}
    sections = {"model": {"scratch": sizes}, "lora": {"rank": 2}, "training": {"max_steps": 2}}
    losses = {}
    for balance in (None, 5.0):
        folder = tmp_path / str(balance)
        folder.mkdir()
        console = Console(file=StringIO(), width=120)
        train(tiny_recipe(folder, **sections, objective={"router_balance": balance}), console)
        output = console.file.getvalue()  # type: ignore[attr-defined]
        assert "8 linear layers and 4 expert tensors, " in output
        steps = [line for line in metrics_of(folder / "run") if "train/loss" in line]
        losses[balance] = [line["train/loss"] for line in steps]
        balances = [line.get("train/router_balance") for line in steps]
        assert (balances == [None, None]) == (balance is None)
        settings = json.loads((folder / "run/scores.settings.json").read_text())
        assert settings["objective"] == BradleyTerry().model_dump(exclude={"router_balance"}), "no score depends on it"
    assert balances[0] == pytest.approx(2, rel=0.2), "two experts a token"
    assert losses[None][0] == losses[5.0][0], "the same weights, and the loss of the rewards alone"
    assert losses[None][1] != losses[5.0][1], "guard: the balance trained"
    with pytest.raises(RecipeError) as refusal:
        train(tiny_recipe(tmp_path, objective={"router_balance": 0.1}), QUIET)
    assert refusal.value.problems[0].startswith("objective.router_balance: ")


@pytest.mark.usefixtures("no_reload")
def test_eval_repeats_the_final_evaluation(tmp_path: Path) -> None:
    """`rmtrain eval RUN` gives the numbers of the run's last evaluation in every digit."""
    recipe = tiny_recipe(tmp_path)
    summary = train(recipe, QUIET).document["evaluation"]
    first = read_scores(tmp_path / "run/scores.jsonl")
    for target in (tmp_path / "run", tmp_path / "run/model"):
        again = run_eval(EvalOptions(target=str(target), output=tmp_path / "again"), QUIET)
        assert read_scores(tmp_path / "again/scores.jsonl") == first
        assert {key: again.document[key] for key in summary} == summary


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [None, {"rank": 4}, {"rank": 4, "dora": True}], ids=["full", "lora", "dora"])
def test_the_export_gives_the_same_rewards_everywhere(lora: dict | None, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, lora=lora, optimizer={"lr": 1e-2})
    train(recipe, QUIET)
    moved = shutil.move(tmp_path / "run/model", tmp_path / "elsewhere")
    ours = {row.id: row.rewards for row in evaluate(str(moved), recipe, QUIET).scored}

    tokenizer = AutoTokenizer.from_pretrained(moved)
    model = AutoModelForSequenceClassification.from_pretrained(moved, dtype=torch.float32).eval()
    rows = planted_rows(16, seed=2)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}], tokenize=False
        )
        for row in rows
        for side in ("chosen", "rejected")
    ]
    expected = torch.tensor([reward for number in range(16) for reward in ours[f"test:{number}"]])
    with torch.no_grad():
        single = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[:, 0] for text in texts])
        batched = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
    piped = torch.tensor([result["score"] for result in pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)])
    for rewards in (single, batched, piped):
        assert torch.allclose(rewards, expected, atol=1e-5, rtol=1e-5)
    scores = read_scores(tmp_path / "run/scores.jsonl")
    in_training = torch.tensor([reward for row in scores for reward in row.rewards])
    assert torch.allclose(in_training, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05, "guard: rewards differ"


def test_missed_gate_says_by_how_much(tmp_path: Path) -> None:
    """A gate in a recipe that is missed ends the job with 6."""
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path, evaluation={"gates": {"loss": 0.0, "accuracy": 0.01}}))
    trained = rmtrain("train", recipe, "--json")
    evaluation = json.loads(trained.stdout)["evaluation"]
    loss = f"{evaluation['loss']:.4f}"
    assert f"error: gate loss: required 0.0, got {loss}, missed by {loss}\n" in trained.stderr
    assert "gate accuracy" not in trained.stderr, "it was reached"
    assert (tmp_path / "run/model/model.safetensors").is_file(), "the model is there to be looked at"
    assert load_recipe(tmp_path / "run/recipe.yaml").evaluation.gates == {"loss": 0.0, "accuracy": 0.01}
    again = rmtrain("eval", tmp_path / "run")
    assert (trained.returncode, again.returncode) == (6, 6)
    assert again.stderr.endswith(f"error: gate loss: required 0.0, got {loss}, missed by {loss}\n")
    assert evaluation["accuracy"] > 0.01, "guard"


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_the_export_has_mean_and_deviation(lora: dict | None, tmp_path: Path) -> None:
    """Of the rewards of all responses of the last evaluation, where OpenRLHF looks for them; a checkpoint's export has the same."""
    train(tiny_recipe(tmp_path, lora=lora), QUIET)
    run = tmp_path / "run"
    rewards = np.array([reward for row in read_scores(run / "scores.jsonl") for reward in row.rewards])
    export(ExportOptions(target=str(run / "checkpoints/step-00000006"), output=tmp_path / "copy"))
    for folder in (run / "model", tmp_path / "copy"):
        config = AutoConfig.from_pretrained(folder)
        assert (config.mean, config.std) == pytest.approx((rewards.mean(), rewards.std()), rel=1e-6)
        assert json.loads((folder / "rmtrain.json").read_text())["rewards"]["responses"] == len(rewards) == 32
        card = (folder / "README.md").read_text()
        assert f"rewards of all 32 responses of this evaluation: mean {decimal(rewards.mean(), 4)}, standard" in card
    assert rewards.std() > 1e-3, "guard: rewards differ"

    # A model that is trained further does not keep the numbers of the weights before, and is scored as before.
    again = run_eval(
        EvalOptions(target=str(run / "model"), overrides=(f"data.eval=[{{path: {tmp_path / 'test.jsonl'}}}]",)), QUIET
    )
    assert again.document["rewards"]["winners"]["mean"] == pytest.approx(rewards.reshape(-1, 2)[:, 0].mean(), abs=1e-5)
    second = {"run": {"name": "second", "output_dir": str(tmp_path / "second")}, "training": {"max_steps": 1}}
    train(tiny_recipe(tmp_path, **second, model=PretrainedModel(path=str(run / "model")), data={"eval": ()}), QUIET)
    config = json.loads((tmp_path / "second/model/config.json").read_text())
    assert not {"mean", "std"} & config.keys()
    assert "rewards of all" not in (tmp_path / "second/model/README.md").read_text()


@pytest.mark.usefixtures("no_reload")
def test_a_planted_rule_is_learned(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=400, test_rows=200, optimizer={"lr": 3e-3}, training={"batch_size": 16, "epochs": 2})
    summary = train(recipe, QUIET).document["evaluation"]
    assert summary["accuracy"] > 0.99
    assert summary["longer_wins"] == pytest.approx(0.5, abs=0.15), "guard: length does not give the rule away"


@pytest.mark.usefixtures("no_reload")
def test_shuffled_labels_are_not_learned(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=200, test_rows=200, training={"batch_size": 16})
    write_rows(tmp_path / "train.jsonl", planted_rows(200, seed=1, shuffled=True))
    write_rows(tmp_path / "test.jsonl", planted_rows(200, seed=2, shuffled=True))
    summary = train(recipe, QUIET).document["evaluation"]
    assert summary["accuracy_low"] < 0.5 < summary["accuracy_high"]


@pytest.mark.usefixtures("no_reload")
def test_the_same_recipe_gives_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        recipe = tiny_recipe(tmp_path, run={"output_dir": str(tmp_path / name)}, model=tiny_recipe(tmp_path).model.model_dump())
        train(recipe, QUIET)
        torch.rand(7)
        weights.append((tmp_path / name / "model/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("no_reload")
def test_max_tokens_changes_only_rounding(tmp_path: Path) -> None:
    """Losses of budgets of any size agree within rounding."""
    losses = {}
    for budget in (200, 600, 10_000):
        recipe = tiny_recipe(tmp_path, run={"output_dir": str(tmp_path / str(budget))}, batching={"max_tokens": budget})
        train(recipe, QUIET)
        losses[budget] = [line["train/loss"] for line in metrics_of(tmp_path / str(budget)) if "train/loss" in line]
    assert losses[200] == pytest.approx(losses[10_000], abs=1e-5)
    assert losses[600] == pytest.approx(losses[10_000], abs=1e-5)
    assert losses[200][0] != losses[200][-1], "guard: something was learned"


def test_nonempty_directory_is_refused(tmp_path: Path) -> None:
    """A directory that holds anything is refused and left alone."""
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"run\.output_dir: "):
        train(recipe, QUIET)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_hh_transcripts_train_export_and_repeat(shared_data: Path, tmp_path: Path) -> None:
    source = {"path": str(shared_data / "hh_harmless.jsonl.gz"), "holdout": 0.1, "limit": 300, "messages": {"transcript": "hh"}}
    recipe = tiny_recipe(
        tmp_path,
        data={
            "train": [source],
            "eval": [],
            "max_length": 512,
            "chat_template": "simple_chat",
            "cache_dir": str(tmp_path / "cache"),
        },
        model={"scratch": {**tiny_recipe(tmp_path).model.scratch.model_dump(), "max_positions": 512, "vocab_size": 1000}},
        batching={"max_tokens": 8192},
        training={"batch_size": 32},
    )
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_drop_fraction": 0.2})})
    summary = train(recipe, QUIET).document["evaluation"]
    again = evaluate(str(tmp_path / "run/model"), recipe, QUIET).summary
    assert again == summary
    assert summary["n"] > 10, "guard: something was held out"


def test_the_quickstart_is_the_recipe_of_the_readme() -> None:
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml")
    assert recipe.run.output_dir == "runs/quickstart"
    assert recipe.evaluation.gates == {"accuracy": 0.97}
