"""`inspect --model`: the rewards are those of `rmtrain score`, in every view, and other models are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain import RewardScorer
from rmtrain.command_line.options import InspectOptions
from rmtrain.commands.inspect import inspect
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.recipe.load import MARKER
from rmtrain.recipe.schema import Recipe
from tests.commands.test_inspect import EVIL, look, shown
from tests.exports import LONGEST, tiny_export
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)
PLAIN = {"prompt": "Name a good ship.", "chosen": "The bright one\nwas calm.", "rejected": "The bright two."}
RANKED = {"prompt": "Rank these.", "responses": ["a b c", "d e", "f g h i"], "scores": [1, 3, 2]}
RATED = {"prompt": "Rate this.", "responses": ["a b c"], "scores": [0.7]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("inspect")
    pairs = [PLAIN, {"prompt": "p", "chosen": EVIL, "rejected": f"no {EVIL}"}, *planted_rows(4)]
    sources: list[dict[str, Any]] = [{"path": str(write_rows(folder / "pairs.jsonl", pairs))}]
    sources.append(
        {
            "path": str(write_rows(folder / "lists.jsonl", [RANKED])),
            "format": "ranked",
            "responses": "responses",
            "score": "scores",
        }
    )
    sizes = {"architecture": "llama", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 400, "max_positions": LONGEST}
    return tiny_recipe(folder, data={"train": sources, "max_length": 200}, model={"scratch": sizes})


def test_last_reward_is_that_of_score(recipe: Recipe, model: str) -> None:
    document = look(recipe, row="0", model=model)
    expected = RewardScorer(model)([PLAIN["prompt"]] * 2, [PLAIN["chosen"], PLAIN["rejected"]])
    responses = document["responses"]
    assert [response["reward"] for response in responses] == pytest.approx(expected, abs=1e-6)
    for response in responses:
        assert len(response["token_rewards"]) == len(response["ids"])
        assert response["token_rewards"][response["reward_index"]] == response["reward"]
    assert abs(expected[0] - expected[1]) > 0.01, "guard: the rewards differ"
    assert document["model"] == model


def test_rewards_are_equal_up_to_the_first_difference(recipe: Recipe, model: str) -> None:
    document = look(recipe, row="0", model=model)
    first, part = document["first_difference"], document["rewards_part"]
    ours, theirs = (response["token_rewards"] for response in document["responses"])
    assert document["prompt_length"] < first, "guard: the responses begin alike"
    assert ours[:first] == theirs[:first]
    assert ours[first] != theirs[first]
    assert part >= first
    text = shown(inspect(recipe, QUIET, InspectOptions(row="0", model=model)))
    assert f"at token {first - document['prompt_length'] + 1} (│)" in text
    assert f"from token {part - document['prompt_length'] + 1} (»)" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_reward_is_readable_without_colours(recipe: Recipe, model: str, width: int) -> None:
    """Each token of the responses has its number below it; with colours it has the background of its step on the scale."""
    result = inspect(recipe, QUIET, InspectOptions(row="0", model=model))
    prompt = result.document["prompt_length"]
    plain = shown(result, width)
    for response in result.document["responses"]:
        part = plain.split(f"\n{response['name']} reward ")[1].split("\n\nprompt as text")[0].split("\n\nrejected reward")[0]
        numbers = [float(word.replace("−", "-")) for line in part.split("\n")[2::3] for word in line.split()]
        assert numbers == pytest.approx(response["token_rewards"][prompt:], abs=0.006)
        assert max(map(len, part.split("\n")[1:])) <= width
    coloured = shown(result, width, color=True).split("\n\nprompt as text")[0]
    assert coloured.count("│") == 4, "in what is shared, where they part, and in both responses"
    assert coloured.count("»") >= 2


def test_lists_and_ratings_have_rewards(recipe: Recipe, model: str, tmp_path: Path) -> None:
    document = look(recipe, row="lists:0", model=model)
    expected = RewardScorer(model)([RANKED["prompt"]] * 3, ["d e", "f g h i", "a b c"])
    assert [response["reward"] for response in document["responses"]] == pytest.approx(expected, abs=1e-6)
    assert document["compared"] == [0, 2]
    text = shown(inspect(recipe, QUIET, InspectOptions(row="lists:0", model=model)))
    assert f"{expected[1]:+.3f}".replace("-", "−") in text, "the response in the table"
    source = {
        "path": str(write_rows(tmp_path / "rated.jsonl", [RATED])),
        "format": "scored",
        "responses": "responses",
        "target": "scores",
    }
    rated = tiny_recipe(tmp_path, data={"train": [source], "eval": []}, objective={"type": "regression"})
    alone = look(rated, row="0", model=model)
    assert len(alone["responses"]) == 1
    assert alone["responses"][0]["reward"] == pytest.approx(
        RewardScorer(model)([RATED["prompt"]], RATED["responses"])[0], abs=1e-6
    )


def test_listed_rows_have_rewards(recipe: Recipe, model: str) -> None:
    rows = look(recipe, limit=3, find="the", model=model)["rows"]
    assert len(rows) == 3
    assert all(response["token_rewards"] for row in rows for response in row["responses"])


def test_encoder_has_rewards_after_its_prompt(recipe: Recipe, tmp_path: Path) -> None:
    path = str(tiny_export(tmp_path / "model", "modernbert"))
    document = look(recipe, row="0", model=path)
    expected = RewardScorer(path)([PLAIN["prompt"]] * 2, [PLAIN["chosen"], PLAIN["rejected"]])
    for response, reward in zip(document["responses"], expected, strict=True):
        computed = [number is not None for number in response["token_rewards"]]
        assert computed.index(True) == document["prompt_length"] - 1
        assert all(computed[document["prompt_length"] :])
        assert response["token_rewards"][-1] == pytest.approx(reward, abs=1e-6)


def test_models_that_cannot_be_read_are_refused(recipe: Recipe, model: str, tmp_path: Path) -> None:
    for wrong in ({"step": 0}, {"dropped": "all"}, {"ids": True}):
        with pytest.raises(RecipeError, match="--model"):
            inspect(recipe, QUIET, InspectOptions(model=model, **wrong))
    with pytest.raises(RecipeError, match="--allow-template-change: needs --model"):
        inspect(recipe, QUIET, InspectOptions(allow_template_change=True))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="rmtrain export"):
        inspect(recipe, QUIET, InspectOptions(model=str(checkpoint)))
    with pytest.raises(CheckpointError, match="no-such-model"):
        inspect(recipe, QUIET, InspectOptions(model=str(tmp_path / "no-such-model")))


def test_another_chat_template_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    other = str(tiny_export(tmp_path / "other", template="simple_concat"))
    with pytest.raises(CheckpointError, match="template hash differs"):
        inspect(recipe, QUIET, InspectOptions(row="0", model=other))
    document = look(recipe, row="0", model=other, allow_template_change=True)
    assert document["responses"][0]["token_rewards"]


def test_rows_beyond_the_positions_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    path = str(tiny_export(tmp_path / "model", "gpt2"))
    longer = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": LONGEST + 1})})
    with pytest.raises(RecipeError, match=rf"^data.max_length: .* {LONGEST} positions"):
        inspect(longer, QUIET, InspectOptions(row="0", model=path))
    assert look(recipe, row="0", model=path)["responses"]


def test_run_directory_stands_for_its_model(recipe: Recipe, model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "run" / "model")
    (tmp_path / "run" / MARKER).write_text("{}")
    documents = [look(recipe, row="0", model=path) for path in (model, str(tmp_path / "run"))]
    assert documents[0]["responses"] == documents[1]["responses"]
    assert documents[1]["model"] == str(tmp_path / "run" / "model")
