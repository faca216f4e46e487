"""`rmtrain preprocess`, and the notes of `train` on its data, with and without faults."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.preprocess import preprocess
from rmtrain.commands.train import train
from rmtrain.data.checks.findings import KINDS
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Recipe, UntrainedPrompts
from tests.report.render import console, render, written
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)


def recipe_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Recipe:
    recipe = tiny_recipe(folder)
    write_rows(folder / "train.jsonl", rows)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": (), **settings})})


def faulty() -> list[dict[str, Any]]:
    """Clean rows, one of them twice, and one repeated with its responses swapped."""
    rows: list[dict[str, Any]] = [*planted_rows(30, seed=1)]
    swapped = {"prompt": rows[7]["prompt"], "chosen": rows[7]["rejected"], "rejected": rows[7]["chosen"]}
    return [*rows, rows[4], swapped]


def test_findings_are_reported_and_listed(tmp_path: Path) -> None:
    result = preprocess(recipe_of(tmp_path, faulty()), QUIET)
    text = render(result.report, width=100, crop=False)
    for part in ("contradictory", "train:7, train:31", "duplicate", "train:4, train:30", "95 %"):
        assert part in text
    found = result.document["findings"]["splits"]["train"]["found"]
    assert {kind: numbers["found"] for kind, numbers in found.items()} == {"contradictory": 1, "duplicate": 1}
    listed = Path(result.document["findings"]["list"])
    assert str(listed) in text
    assert [json.loads(line)["kind"] for line in listed.read_text().splitlines()] == ["duplicate", "contradictory"]
    assert json.loads(json.dumps(result.document, allow_nan=False)) == result.document


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    result = preprocess(tiny_recipe(tmp_path), QUIET)
    text = render(result.report, width=100, crop=False)
    assert not any(kind in text for kind in KINDS)
    assert [split["found"] for split in result.document["findings"]["splits"].values()] == [{}, {}]


def test_trap_03_long_rows_are_dropped_whole(tmp_path: Path) -> None:
    """Responses that differ only beyond `max_length` would be equal if they were cut."""
    start = "the barn is calm, " * 12
    rows = [
        {"prompt": "one", "chosen": start + "and bright", "rejected": start + "and bleak"},
        {"prompt": "two", "chosen": start + "a", "rejected": start + "b"},
        {"prompt": "three", "chosen": "the barn is calm", "rejected": "the barn is grim"},
    ]
    with pytest.raises(DataError, match=r"^train: 2 of 3 .*\(66\.7 %\).*\b5 %.*\btoo_long 2\b") as error:
        preprocess(recipe_of(tmp_path, rows, max_length=60), QUIET)
    assert error.value.exit_code == 3
    document = preprocess(recipe_of(tmp_path, rows, max_length=60, max_drop_fraction=0.7), QUIET).document
    waterfall = document["splits"]["train"]["waterfall"]["train"]
    assert (waterfall["kept"], waterfall["dropped"]) == (1, {"too_long": 2})
    cut = preprocess(recipe_of(tmp_path, rows, max_length=60, max_drop_fraction=0.7, overlong="truncate_prompt_left"), QUIET)
    assert cut.document["splits"]["train"]["waterfall"]["train"]["dropped"] == {"response_too_long": 2}, "no response is cut"


def test_trap_18_mixed_rows_are_counted_exactly(tmp_path: Path) -> None:
    """Each dropped row has one reason; data of which no row is left is refused."""
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
    with pytest.raises(DataError, match=r"^train: .*\b2 rows\b") as error:
        preprocess(recipe_of(tmp_path, [rows[7], rows[8]], max_drop_fraction=1.0), QUIET)
    assert error.value.exit_code == 3


def test_training_on_a_benchmark_is_refused(tmp_path: Path) -> None:
    """It is refused before anything is built, and allowed with `data.allow_overlap`."""
    bench = write_rows(tmp_path / "bench.jsonl", [{"prompt": row["prompt"].upper()} for row in planted_rows(30, seed=1)[:2]])
    # Whole prompts only, since all rows are made from one sentence.
    recipe = recipe_of(tmp_path, faulty(), benchmarks=(UntrainedPrompts(path=str(bench)),), edited_prompts=None)
    for verb in (preprocess, train):
        with pytest.raises(DataError, match=r"^2 of 32 .*\bdata\.benchmarks\b.*\btrain:0 ") as error:
            verb(recipe, QUIET)
        assert error.value.exit_code == 3
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    allowed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"allow_overlap": True})})
    assert preprocess(allowed, QUIET).document["findings"]["splits"]["train"]["found"]["benchmark"]["rows"] == 2


def test_benchmark_by_name_is_refused(tmp_path: Path) -> None:
    """`data.benchmarks` takes names of benchmarks: their own files, their rows by subset and id, edited prompts too."""
    asked = [row["prompt"].replace("describe", "please describe in detail") for row in planted_rows(30, seed=1)[:2]]
    rows = [
        {"id": f"r{number}", "prompt": prompt, "chosen": "a", "rejected": "b", "subset": "hep-go"}
        for number, prompt in enumerate(asked)
    ]
    write_rows(tmp_path / "filtered.jsonl", rows)
    named = UntrainedPrompts(name="rewardbench", path=str(tmp_path / "filtered.jsonl"))
    recipe = recipe_of(tmp_path, faulty(), benchmarks=(named,))
    for verb in (preprocess, train):
        with pytest.raises(
            DataError, match=r"data\.benchmarks\b.*\btrain:0 \(\d+% of the prompt of rewardbench: hep-go/r0\)"
        ) as error:
            verb(recipe, QUIET)
        assert error.value.exit_code == 3
    whole = recipe_of(tmp_path, faulty(), benchmarks=(named,), edited_prompts=None)
    assert "benchmark" not in preprocess(whole, QUIET).document["findings"]["splits"]["train"]["found"]
    with pytest.raises(DataError, match=r"^data\.benchmarks: llmbar: .*`path`"):
        preprocess(recipe_of(tmp_path, faulty(), benchmarks=(UntrainedPrompts(name="llmbar"),)), QUIET)


def test_train_notes_findings_first(tmp_path: Path) -> None:
    target = console(width=160)
    recipe = recipe_of(tmp_path, faulty())
    with pytest.raises(RecipeError, match=r"max_tokens"):  # the run ends soon after
        train(recipe.model_copy(update={"batching": recipe.batching.model_copy(update={"max_tokens": 10})}), target)
    notes = [line for line in written(target).splitlines() if line.startswith("note: data: ")]
    assert [note.partition(";")[0] for note in notes] == ["note: data: 1 contradictory, 1 duplicate"]


def test_trap_16_replies_rewritten_by_the_template(tmp_path: Path) -> None:
    """They are counted, and refused unless `data.allow_rewritten` is set."""
    rows = planted_rows(12, seed=3)
    rows[4]["chosen"] = f"<think>calm?</think>{rows[4]['chosen']}"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] | trim }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"^train: 1 of 12 .*\(8\.3 %\), .*rewritten_by_template 1 \(train:4: "):
        preprocess(recipe_of(tmp_path, rows, chat_template=template), QUIET)
    allowed = preprocess(recipe_of(tmp_path, rows, chat_template=template, allow_rewritten=True), QUIET).document
    assert allowed["splits"]["train"]["comparisons"] == 12


def test_trap_37_transcripts_share_their_prompt(tmp_path: Path) -> None:
    """Responses that repeat the prompt column as a transcript have the prompt once, and share its tokens."""
    turns = [f"\n\nHuman: {row['prompt']}\n\nAssistant:" for row in planted_rows(6, seed=3)]
    rows = [{"prompt": turn, "chosen": f"{turn} It is calm.", "rejected": f"{turn} It is grim."} for turn in turns]
    recipe = recipe_of(tmp_path, rows)
    with pytest.raises(DataError, match=r"^train: .*\b6 rows\b.*\(transcript\).*\btrain\.jsonl:1: "):
        preprocess(recipe, QUIET)
    (source,) = recipe.data.train
    source = source.model_copy(update={"messages": source.messages.model_copy(update={"transcript": "hh"})})
    documents = []
    for prompt in ("auto", "implicit"):
        data = recipe.data.model_copy(update={"train": (source.model_copy(update={"prompt": prompt}),)})
        documents.append(preprocess(recipe.model_copy(update={"data": data}), QUIET).document["splits"]["train"])
    repeated, alone = documents
    assert repeated["lengths"] == alone["lengths"], "the prompt is stored once"
    assert alone["comparisons"] == 6
    assert alone["unique_tokens"] < 0.7 * alone["tokens"], "and shared"
