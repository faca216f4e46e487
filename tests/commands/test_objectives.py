"""Whole runs on soft labels, weights and targets: equal to what they mean, and able to find what was planted."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.command_line.options import InspectOptions
from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.inspect import inspect
from rmtrain.commands.preprocess import preprocess
from rmtrain.commands.train import train
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.scores_file import read_scores
from rmtrain.evaluation.targets import spearman
from rmtrain.recipe.load import load_recipe
from tests.runs import BAD, GOOD, NOUNS, metrics_of, planted_rows, tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)


def trained(folder: Path, rows: list[dict[str, Any]], source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Train a tiny model on rows, and return its evaluation on the last quarter of them."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = 3 * len(rows) // 4
    files = [write_rows(folder / f"{name}.jsonl", part) for name, part in (("rows", rows[:cut]), ("held", rows[cut:]))]
    data = {"train": [{"path": str(files[0]), **source}], "eval": [{"path": str(files[1]), **source}]}
    return dict(train(tiny_recipe(folder, data=data, **changes), QUIET).document["evaluation"])


def losses_of(folder: Path) -> list[float]:
    return [line["train/loss"] for line in metrics_of(folder / "run") if "train/loss" in line]


def rated_rows(count: int, noise: float = 0.0, responses: int = 1) -> list[dict[str, Any]]:
    """Responses of four clauses; the rating is the number of good ones, with noise."""
    rng, rows = random.Random(5), []
    for number in range(count):
        items = []
        for _ in range(responses):
            good = rng.randint(0, 4)
            words = [rng.choice(GOOD) for _ in range(good)] + [rng.choice(BAD) for _ in range(4 - good)]
            rng.shuffle(words)
            text = " ".join(f"the {rng.choice(NOUNS)} is {word}," for word in words)
            items.append({"text": text, "rating": good + rng.gauss(0, noise)})
        prompt = f"Entry {number}: describe the {rng.choice(NOUNS)}."
        rows.append({"prompt": prompt, "answers": items, **(items[0] if responses == 1 else {})})
    return rows


RATED = {"format": "scored", "response": "text", "target": "rating"}


@pytest.mark.usefixtures("no_reload")
def test_certain_labels_and_equal_weights_change_nothing(tmp_path: Path) -> None:
    """A probability of 1 and weights of 7 each give the losses and rewards of plain pairs, bit for bit."""
    pairs = planted_rows(48, seed=1)
    soft = [{"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"], "p": 1.0, "w": 7} for row in pairs]
    label = {"format": "ab", "a": "a", "b": "b", "label": {"by": "probability", "column": "p"}, "weight": "w"}
    evaluations = [trained(tmp_path / "plain", pairs, {}), trained(tmp_path / "soft", soft, label)]
    assert losses_of(tmp_path / "plain") == losses_of(tmp_path / "soft")
    assert evaluations[0]["rewards"] == evaluations[1]["rewards"]
    assert evaluations[0]["loss"] == evaluations[1]["loss"]
    assert len(set(losses_of(tmp_path / "plain"))) > 3, "guard: it trained"


@pytest.mark.usefixtures("no_reload")
def test_weights_are_shares_of_the_loss(tmp_path: Path) -> None:
    """Weights divided by their mean: the loss of a step is the mean of the losses of its rows times these; raw weights are not divided."""
    rows = [row | {"w": 1 + 3 * (number % 2)} for number, row in enumerate(planted_rows(16, seed=1))]
    options: dict[str, Any] = {"training": {"batch_size": 12, "max_steps": 1}, "optimizer": {"lr": 1e-9}}
    trained(tmp_path / "weighted", rows, {"weight": "w"}, **options)
    trained(tmp_path / "raw", rows, {"weight": "w", "raw_weights": True}, **options)
    weighted, raw = losses_of(tmp_path / "weighted")[0], losses_of(tmp_path / "raw")[0]
    assert weighted == pytest.approx(raw, rel=1e-6), "a weighted mean, whatever the scale"
    gradients = [metrics_of(tmp_path / name / "run")[0]["train/grad_norm"] for name in ("weighted", "raw")]
    assert gradients[1] == pytest.approx(2.5 * gradients[0], rel=1e-5), "the gradient has the scale of raw weights"
    scored = read_scores(tmp_path / "weighted/run/scores.jsonl")
    assert [row.weight for row in scored] == pytest.approx([0.4, 1.6, 0.4, 1.6])
    expected = [row.weight * math.log1p(math.exp(row.rewards[1] - row.rewards[0])) for row in scored]
    summary = json.loads((tmp_path / "weighted/run/metrics.jsonl").read_text().splitlines()[-1])
    assert summary["eval/loss"] == pytest.approx(sum(expected) / 4, rel=1e-9)


@pytest.mark.parametrize("weight", [-1, "high", None, "nan"])
def test_bad_weights_name_their_rows(weight: Any, tmp_path: Path) -> None:
    """One bad weight among many is an error, as a bad margin is; weights that are all zero leave nothing."""
    rows = [row | {"w": weight if number == 7 else 1.5} for number, row in enumerate(planted_rows(40, seed=1))]
    with pytest.raises(DataError) as refusal:
        trained(tmp_path / "one", rows, {"weight": "w", "tag": "mine"})
    assert all(part in refusal.value.problems[0] for part in ("mine:7", "rows.jsonl:8", "w is "))
    with pytest.raises(DataError, match="zero_weight"):
        trained(tmp_path / "all", [row | {"w": 0} for row in rows], {"weight": "w"})


def test_probabilities_are_from_zero_to_one(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"], "p": 1.5} for row in planted_rows(12, seed=1)]
    source = {"format": "ab", "a": "a", "b": "b", "label": {"by": "probability", "column": "p"}}
    with pytest.raises(DataError, match=r"bad_probability.*p is 1\.5"):
        trained(tmp_path, rows, source)


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("responses", [1, 3])
def test_noisy_ratings_are_learned(responses: int, tmp_path: Path) -> None:
    """Spearman's correlation with the ratings without noise is above 0.95; errors are in their units, and the scale is exported."""
    rows = rated_rows(1600 // responses, noise=0.5, responses=responses)
    source = RATED if responses == 1 else {"format": "scored", "responses": "answers", "response": "text", "target": "rating"}
    options: dict[str, Any] = {"optimizer": {"lr": 5e-3}, "training": {"batch_size": 16 // responses, "epochs": 2 + responses}}
    summary = trained(tmp_path, rows, source, objective={"type": "regression"}, **options)
    facts = json.loads((tmp_path / "run/model/rmtrain.json").read_text())["objective"]
    ratings = np.array([item["rating"] for row in rows[: 3 * len(rows) // 4] for item in row["answers"]])
    assert (facts["mean"], facts["std"]) == pytest.approx((ratings.mean(), ratings.std()))
    scored = read_scores(tmp_path / "run/scores.jsonl")
    rewards = np.array([reward for row in scored for reward in row.rewards])
    noisy = np.array([target.value for row in scored for target in row.targets])
    assert summary["mse"] == pytest.approx(float(np.mean((rewards * facts["std"] + facts["mean"] - noisy) ** 2)))
    assert 0.2 < summary["mse"] < 0.8, "the noise has a variance of 0.25, the ratings of 2"
    assert summary["accuracy"] is None
    assert summary["targets"] == len(noisy) == (len(rows) - 3 * len(rows) // 4) * responses
    texts = [item["text"] for row in rows for item in row["answers"]][-len(noisy) :]
    good = np.array([[sum(text.count(f" {word},") for word in GOOD) for text in texts]])
    (correlation,) = spearman(rewards[None], good)
    assert correlation is not None
    assert correlation > 0.95
    data = json.dumps({"path": str(tmp_path / "held.jsonl"), **source})
    again = run_eval(EvalOptions(target=str(tmp_path / "run/model"), data=data, output=tmp_path / "again"), QUIET)
    assert again.document["mse"] == summary["mse"], "the export knows the scale"
    assert again.document["loss"] == summary["loss"]
    pairs = write_rows(tmp_path / "pairs.jsonl", planted_rows(100, seed=9))
    of_pairs = run_eval(EvalOptions(target=str(tmp_path / "run"), data=str(pairs), output=tmp_path / "pairs"), QUIET).document
    assert of_pairs["accuracy"] > 0.9, "a model of ratings prefers the better response"
    assert of_pairs["loss"] is None


@pytest.mark.usefixtures("no_reload")
def test_verifier_bits_are_learned(tmp_path: Path) -> None:
    rows = [row | {"verdict": ["👎", "👍"][round(row["rating"]) > 2]} for row in rated_rows(1600)]
    source = {"format": "scored", "response": "text", "target": "verdict", "values": {"👍": 1, "👎": 0}}
    options: dict[str, Any] = {"optimizer": {"lr": 1e-2}, "training": {"batch_size": 16, "epochs": 2}}
    gates = {"evaluation": {"gates": {"auc": 0.98, "brier": 0.1}}}
    summary = trained(tmp_path, rows, source, objective={"type": "binary"}, **options, **gates)
    assert summary["auc"] > 0.98
    assert summary["accuracy_at_half"] > 0.9
    assert summary["mse"] is None
    assert len({target.value for row in read_scores(tmp_path / "run/scores.jsonl") for target in row.targets}) == 2, "guard"


@pytest.mark.usefixtures("no_reload")
def test_kinds_mix_in_one_run(tmp_path: Path) -> None:
    """Pairs, ratings and bits train together; each source has the numbers of its kind, and training resumes to the same weights."""
    pairs = write_rows(tmp_path / "pairs.jsonl", planted_rows(96, seed=1))
    rated = write_rows(tmp_path / "rated.jsonl", rated_rows(96))
    sources = [{"path": str(pairs), "holdout": 0.25}, {"path": str(rated), **RATED, "holdout": 0.25, "repeat": 1.5}]
    objective = {"type": "by_source", "sources": {"rated": {"type": "regression", "weight": 0.5}}}
    recipe = tiny_recipe(tmp_path, data={"train": sources, "eval": ()}, objective=objective)
    summary = train(recipe, QUIET).document["evaluation"]
    assert summary["sources"]["pairs"]["accuracy"] is not None
    assert summary["sources"]["pairs"]["targets"] == 0
    assert summary["sources"]["rated"]["mse"] is not None
    assert summary["sources"]["rated"]["preferences"] == 0
    parts = [summary["sources"][name] for name in ("pairs", "rated")]
    assert summary["loss"] == pytest.approx(sum(part["loss"] * part["n"] for part in parts) / summary["n"], rel=1e-9)
    report = (tmp_path / "run/report.html").read_text()
    assert "Reward by target" in report
    prepared = preprocess(recipe, QUIET).document["splits"]
    assert [prepared[split]["targets"] > 0 for split in ("train", "eval")] == [True, True]
    counts = prepared["train"]["waterfall"]["rated"]
    assert counts["kept"] == counts["read"] + counts["added"]["repeated"] > counts["read"], "copies of single responses"
    with pytest.raises(DataError, match="rated:"):
        preprocess(recipe, QUIET, export=tmp_path / "export")
    shown = inspect(recipe, QUIET, InspectOptions(source="rated", limit=1))
    (row,) = shown.document["rows"]
    assert row["targets"][0]["value"] == pytest.approx(rated_rows(96)[int(row["id"].split(":")[1])]["rating"])


OWN = """
import torch

def hinge(rewards, labels):
    margins = rewards[labels.winner_E] - rewards[labels.loser_E]
    return (torch.relu(1 - margins) * labels.weight_E).sum()

def nan(rewards, labels):
    return rewards.sum() * float("nan")

def vector(rewards, labels):
    return rewards

def nothing(rewards, labels):
    pass

def constant(rewards, labels):
    return torch.tensor(1.0)

def broken(rewards, labels):
    return rewards / labels.no_such_field
"""


@pytest.mark.usefixtures("no_reload")
def test_own_function_trains_and_evaluates(tmp_path: Path) -> None:
    """A hinge loss: `eval/loss` is the function's value on the scores, the file is copied, and the run's own recipe finds it."""
    (tmp_path / "my_loss.py").write_text(OWN)
    recipe = tiny_recipe(tmp_path, objective={"type": "function", "path": "my_loss.py:hinge"}, optimizer={"lr": 1e-2})
    summary = train(load_recipe(write_recipe(tmp_path, recipe)), QUIET).document["evaluation"]
    scored = read_scores(tmp_path / "run/scores.jsonl")
    hinge = [max(0.0, 1 - row.rewards[0] + row.rewards[1]) for row in scored]
    assert summary["loss"] == pytest.approx(np.mean(hinge), rel=1e-6)
    losses = losses_of(tmp_path)
    assert losses[-1] < losses[0]
    assert (tmp_path / "run/my_loss.py").read_text() == OWN
    again = run_eval(EvalOptions(target=str(tmp_path / "run"), output=tmp_path / "again"), QUIET)
    assert again.document["loss"] == summary["loss"]
    alone = run_eval(EvalOptions(scores=tmp_path / "run/scores.jsonl"), QUIET)
    assert alone.document["loss"] is None, "the file of scores has no code"


@pytest.mark.parametrize("name", ["nan", "vector", "nothing", "constant", "broken", "missing"])
def test_bad_functions_are_refused_before_training(name: str, tmp_path: Path) -> None:
    (tmp_path / "my_loss.py").write_text(OWN)
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_recipe(tmp_path, objective={"type": "function", "path": f"my_loss.py:{name}"}))
    )
    with pytest.raises(RecipeError) as refusal:
        train(recipe, QUIET)
    (problem,) = refusal.value.problems
    assert problem.startswith("objective.path: ")
    assert name in problem
    assert "\n" not in problem
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "source", "objective", "parts"),
    [
        ([{"text": "a", "rating": 1.0}] * 4, RATED, {"type": "regression"}, ["all 4 targets are 1"]),
        ([{"text": f"a {n}", "rating": n} for n in range(4)], RATED, {"type": "binary"}, ["rows:2", "0 to 1"]),
        ([{"text": f"a {n}", "rating": "good"} for n in range(4)], RATED, {"type": "regression"}, ["rows.jsonl:1", "'good'", "values"]),
        ([{"text": f"a {n}", "rating": "bad"} for n in range(4)], RATED | {"values": {"good": 1}}, {"type": "regression"}, ["'bad'"]),
    ],
)  # fmt: skip
def test_bad_targets_are_named(
    rows: list[dict[str, Any]], source: dict[str, Any], objective: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows)
    recipe = tiny_recipe(tmp_path, data={"train": [{"path": str(file), **source}], "eval": ()}, objective=objective)
    with pytest.raises(DataError) as refusal:
        train(recipe, QUIET)
    (problem,) = refusal.value.problems
    assert all(part in problem for part in parts), problem
    assert not (tmp_path / "run").exists()


def test_a_scale_needs_training_rows(tmp_path: Path) -> None:
    """A regression of a source that is only evaluated has no targets to take its scale from."""
    rated = write_rows(tmp_path / "rated.jsonl", rated_rows(8))
    recipe = tiny_recipe(tmp_path)
    data = {"train": recipe.data.model_dump()["train"], "eval": [{"path": str(rated), **RATED}]}
    objective = {"type": "by_source", "sources": {"rated": {"type": "regression"}}}
    with pytest.raises(RecipeError, match=r"^objective\.sources\.rated: "):
        train(tiny_recipe(tmp_path, data=data, objective=objective), QUIET)
    scaled = {"type": "by_source", "sources": {"rated": {"type": "regression", "mean": 2.0, "std": 1.0}}}
    summary = train(tiny_recipe(tmp_path, data=data, objective=scaled, training={"max_steps": 1}), QUIET).document["evaluation"]
    assert summary["mse"] is not None


@pytest.mark.usefixtures("no_reload")
@pytest.mark.long
def test_soft_labels_beat_the_majority(tmp_path: Path) -> None:
    """Three annotators of known reliability: the share of votes gives a lower held-out log-loss than their majority."""
    rng, losses = random.Random(3), {}
    rows = []
    for row in planted_rows(2000, seed=4):
        hard = rng.random() < 0.5  # where annotators disagree, and so do the held-out labels
        votes = [rng.random() < (0.6 if hard else 0.95) for _ in range(3)]
        text = "difficult, " if hard else ""
        sides = {"a": text + row["chosen"], "b": text + row["rejected"]}
        rows.append({"prompt": row["prompt"], **sides, **{f"v{n}": int(vote) for n, vote in enumerate(votes)}})
    test = [row | {"v1": None, "v2": None} for row in rows[1500:]]
    for soft in (False, True):
        folder = tmp_path / str(soft)
        folder.mkdir()
        label = {"by": "value", "column": ["v0", "v1", "v2"], "values": {1: "a", 0: "b"}, "soft": soft}
        source = {"format": "ab", "a": "a", "b": "b", "label": label}
        files = [write_rows(folder / f"{name}.jsonl", part) for name, part in (("votes", rows[:1500]), ("held", test))]
        data = {"train": [{"path": str(files[0]), **source}], "eval": [{"path": str(files[1]), **source}]}
        recipe = tiny_recipe(folder, data=data, optimizer={"lr": 5e-3}, training={"batch_size": 16, "epochs": 3})
        train(recipe, QUIET)
        scored = read_scores(folder / "run/scores.jsonl")
        losses[soft] = np.array([math.log1p(math.exp(row.rewards[1] - row.rewards[0])) for row in scored])
    gain = losses[False] - losses[True]
    deviation = 1.96 * gain.std(ddof=1) / math.sqrt(len(gain))
    print(f"log-loss {losses[True].mean():.4f} against {losses[False].mean():.4f}, gain {gain.mean():.4f} ± {deviation:.4f}")
    assert gain.mean() - deviation > 0
    assert losses[True].mean() < math.log(2), "guard: it learned"


@pytest.mark.usefixtures("no_reload")
def test_rm_bench_as_right_and_wrong(shared_data: Path, tmp_path: Path) -> None:
    """The rows of RM-Bench with six responses each, three of them right: every response is scored, and the prompt computed once."""
    published = json.loads((shared_data / "rmbench_chat.json").read_text(encoding="utf-8"))
    rows = [
        {"prompt": row["prompt"], "answers": [*row["chosen"], *row["rejected"]], "right": [True] * 3 + [False] * 3}
        for row in published
    ]
    source = {"format": "scored", "responses": "answers", "target": "right"}
    files = [write_rows(tmp_path / f"{name}.jsonl", part) for name, part in (("bench", rows[:100]), ("held", rows[100:]))]
    data = {"train": [{"path": str(files[0]), **source}], "eval": [{"path": str(files[1]), **source}], "max_length": 4096}
    sizes = {"architecture": "llama", "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "vocab_size": 400}
    model = {"scratch": sizes | {"max_positions": 4096}}
    options: dict[str, Any] = {"batching": {"max_tokens": "auto"}, "training": {"max_steps": 1, "batch_size": 4}}
    summary = train(tiny_recipe(tmp_path, data=data, model=model, objective={"type": "binary"}, **options), QUIET).document[
        "evaluation"
    ]
    assert summary["targets"] == 6 * summary["n"]
    assert summary["n"] == len(rows) - 100
    rewards, targets = np.array(
        [(row.rewards[t.response], t.value) for row in read_scores(tmp_path / "run/scores.jsonl") for t in row.targets]
    ).T
    lead = rewards[targets == 1][:, None] - rewards[targets == 0]
    assert summary["auc"] == pytest.approx(np.mean((lead > 0) + 0.5 * (lead == 0)), rel=1e-9)
