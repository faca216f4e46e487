"""`rmtrain preprocess`, and what `train` says first, on data with faults and without."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.preprocess import preprocess
from rmtrain.commands.train import train
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Recipe
from tests.report.render import console, render, written
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)


def recipe_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Recipe:
    recipe = tiny_recipe(folder)
    write_rows(folder / "train.jsonl", rows)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": (), **settings})})


def faulty() -> list[dict[str, Any]]:
    """Clean rows, one of them again, and one the other way round."""
    rows: list[dict[str, Any]] = [*planted_rows(30, seed=1)]
    turned = {"prompt": rows[7]["prompt"], "chosen": rows[7]["rejected"], "rejected": rows[7]["chosen"]}
    return [*rows, rows[4], turned]


def test_findings_are_reported_listed_and_in_the_document(tmp_path: Path) -> None:
    outcome = preprocess(recipe_of(tmp_path, faulty()), QUIET)
    text = render(outcome.report, width=100)
    for part in ("contradictory", "train:7, train:31", "duplicate", "train:4, train:30", "is longer", "95 % interval"):
        assert part in text
    found = outcome.document["findings"]["splits"]["train"]["found"]
    assert {kind: numbers["found"] for kind, numbers in found.items()} == {"contradictory": 1, "duplicate": 1}
    listed = Path(outcome.document["findings"]["list"])
    assert str(listed) in text.replace("\n", "")
    assert [json.loads(line)["kind"] for line in listed.read_text().splitlines()] == ["duplicate", "contradictory"]
    assert json.loads(json.dumps(outcome.document, allow_nan=False)) == outcome.document


def test_clean_data_is_said_to_be_so(tmp_path: Path) -> None:
    outcome = preprocess(tiny_recipe(tmp_path), QUIET)
    assert render(outcome.report, width=100).count("nothing is wrong with these rows") == 2
    assert [split["found"] for split in outcome.document["findings"]["splits"].values()] == [{}, {}]


def test_trap_03_rows_that_differ_only_beyond_the_limit_are_dropped_whole(tmp_path: Path) -> None:
    start = "the barn is calm, " * 12
    rows = [
        {"prompt": "one", "chosen": start + "and bright", "rejected": start + "and bleak"},
        {"prompt": "two", "chosen": start + "a", "rejected": start + "b"},
        {"prompt": "three", "chosen": "the barn is calm", "rejected": "the barn is grim"},
    ]
    with pytest.raises(DataError, match=r"^train: 2 of 3 rows dropped \(66\.7 %\), allowed 5 %: too_long 2") as error:
        preprocess(recipe_of(tmp_path, rows, max_length=60), QUIET)
    assert error.value.exit_code == 3
    document = preprocess(recipe_of(tmp_path, rows, max_length=60, max_drop_fraction=0.7), QUIET).document
    waterfall = document["splits"]["train"]["waterfall"]["train"]
    assert (waterfall["kept"], waterfall["dropped"]) == (1, {"too_long": 2})
    cut = preprocess(recipe_of(tmp_path, rows, max_length=60, max_drop_fraction=0.7, overlong="truncate_prompt_left"), QUIET)
    assert cut.document["splits"]["train"]["waterfall"]["train"]["dropped"] == {"response_too_long": 2}, "no response is cut"


def test_trap_18_mixed_rows_are_counted_exactly_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a boat"}, {"role": "assistant", "content": "It floats."}]
    rows = [
        *planted_rows(5, seed=3),
        {"chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "It sinks."}]},
        {"prompt": "none", "chosen": None, "rejected": "b"},
        {"prompt": "empty", "chosen": "", "rejected": "b"},
        {"prompt": "long", "chosen": "the barn is calm " * 60, "rejected": "b"},
    ]
    document = preprocess(recipe_of(tmp_path, rows, max_drop_fraction=0.5), QUIET).document
    counts = document["splits"]["train"]["waterfall"]["train"]
    assert (counts["read"], counts["kept"]) == (9, 6)
    assert counts["dropped"] == {"empty_cell": 1, "empty_response": 1, "too_long": 1}
    with pytest.raises(DataError, match=r"^train: all 2 rows ") as error:
        preprocess(recipe_of(tmp_path, [rows[7], rows[8]], max_drop_fraction=1.0), QUIET)
    assert error.value.exit_code == 3


def test_training_on_a_benchmark_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    bench = write_rows(tmp_path / "bench.jsonl", [{"prompt": row["prompt"].upper()} for row in planted_rows(30, seed=1)[:2]])
    recipe = recipe_of(tmp_path, faulty(), benchmarks=(str(bench),))
    for verb in (preprocess, train):
        with pytest.raises(DataError, match=r"^2 of 32 training rows have a prompt of data\.benchmarks: train:0 \(") as error:
            verb(recipe, QUIET)
        assert error.value.exit_code == 3
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    allowed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"allow_overlap": True})})
    assert preprocess(allowed, QUIET).document["findings"]["splits"]["train"]["found"]["benchmark"]["rows"] == 2


def test_train_says_first_what_was_found(tmp_path: Path) -> None:
    target = console(width=160)
    recipe = recipe_of(tmp_path, faulty())
    with pytest.raises(RecipeError, match=r"max_tokens"):  # the run ends soon after
        train(recipe.model_copy(update={"batching": recipe.batching.model_copy(update={"max_tokens": 10})}), target)
    notes = [line for line in written(target).splitlines() if line.startswith("note: data: ")]
    assert notes == ["note: data: 1 contradictory, 1 duplicate; `rmtrain preprocess` shows the rows"]


def test_trap_16_replies_that_the_template_rewrites_are_counted_and_refused_unless_allowed(tmp_path: Path) -> None:
    rows = planted_rows(12, seed=3)
    rows[4]["chosen"] = f"<think>calm?</think>{rows[4]['chosen']}"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] | trim }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"^train: 1 of 12 rows dropped \(8\.3 %\), .*rewritten_by_template 1 \(train:4: "):
        preprocess(recipe_of(tmp_path, rows, chat_template=template), QUIET)
    allowed = preprocess(recipe_of(tmp_path, rows, chat_template=template, allow_rewritten=True), QUIET).document
    assert allowed["splits"]["train"]["comparisons"] == 12


def test_trap_37_a_transcript_beside_its_prompt_has_the_prompt_once_and_shares_it(tmp_path: Path) -> None:
    turns = [f"\n\nHuman: {row['prompt']}\n\nAssistant:" for row in planted_rows(6, seed=3)]
    rows = [{"prompt": turn, "chosen": f"{turn} It is calm.", "rejected": f"{turn} It is grim."} for turn in turns]
    recipe = recipe_of(tmp_path, rows)
    with pytest.raises(DataError, match=r"^train: the first 6 rows are all refused \(transcript\): train:0: "):
        preprocess(recipe, QUIET)
    (source,) = recipe.data.train
    source = source.model_copy(update={"messages": source.messages.model_copy(update={"transcript": "hh"})})
    documents = []
    for prompt in ("auto", "implicit"):
        data = recipe.data.model_copy(update={"train": (source.model_copy(update={"prompt": prompt}),)})
        documents.append(preprocess(recipe.model_copy(update={"data": data}), QUIET).document["splits"]["train"])
    beside, alone = documents
    assert beside["lengths"] == alone["lengths"], "the prompt is there once"
    assert alone["comparisons"] == 6
    assert alone["unique_tokens"] < 0.7 * alone["tokens"], "and shared"
