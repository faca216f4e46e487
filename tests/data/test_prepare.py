import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data import loading
from rmtrain.data import prepare as prepare_module
from rmtrain.data.checks import find_repeats
from rmtrain.data.prepare import prepare, prepare_evaluation
from rmtrain.data.tokenizer import load_tokenizer, prepared
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Architecture, Data, Messages, PairSource, ScratchModel, TokenizedSource
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def builds(cache: Path) -> list[str]:
    return sorted(folder.name for folder in cache.iterdir())


def test_every_row_is_kept_in_order_or_dropped_with_its_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[dict[str, Any]] = list(pairs(40))
    rows[3] = {"prompt": "q", "chosen": "same", "rejected": "same"}
    rows[9] = {"prompt": "q", "chosen": "a b c " * 400, "rejected": "b"}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with file.open("a") as stream:
        stream.write("{broken\n")
    data = data_of(file, tmp_path / "cache", max_length=100, max_drop_fraction=0.1)
    seen: list[tuple[str, int]] = []
    made = prepare(data, tokenizer, lambda source, count: seen.append((source, count)))
    assert made.train.ids == [f"rows:{number}" for number in range(40) if number not in (3, 9)]
    count = made.train.waterfall.sources["rows"]
    assert (count.read, count.kept) == (41, 38)
    assert count.dropped == {"identical": 1, "malformed_row": 1, "too_long": 1}
    assert seen == [("rows", 41)]
    lost = [json.loads(line) for line in (made.directory / "dropped.jsonl").read_text().splitlines()]
    assert {(row["id"], row["reason"]) for row in lost} == {
        ("rows:3", "identical"), ("rows:9", "too_long"), ("rows:40", "malformed_row"),
    }  # fmt: skip
    assert all(row["split"] == "train" and "a b c" not in json.dumps(row) for row in lost), "no text of rows is kept"
    assert tokenizer.decode(made.train[0].sequences[0]) == "User: What is 0 plus one?\n\nAssistant: It is 1.<|endoftext|>"
    assert len(made.eval) == 0


def test_batches_do_not_show_in_the_result(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(25))
    whole = prepare(data_of(file, tmp_path / "one", holdout=0.3), tokenizer)
    monkeypatch.setattr(loading, "BATCH_ROWS", 4)
    cut = prepare(data_of(file, tmp_path / "two", holdout=0.3), tokenizer)
    assert (list(cut.train), list(cut.eval)) == (list(whole.train), list(whole.eval))
    assert cut.train.key == whole.train.key
    assert len(whole.eval) > 0, "guard: something was held out"


def test_trap_12_a_prompt_is_in_one_split_only(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pairs(50, prompts=10)
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = prepare(data_of(file, tmp_path / "cache", holdout=0.4), tokenizer)
    prompt_of = {f"rows:{number}": row["prompt"] for number, row in enumerate(rows)}
    sides = [{prompt_of[row_id] for row_id in split.ids} for split in (made.train, made.eval)]
    assert sides[0] & sides[1] == set()
    assert len(sides[0]) + len(sides[1]) == 10
    assert min(map(len, sides)) > 0
    assert len(made.train) + len(made.eval) == 50
    assert made.train.waterfall.sources["rows"].read + made.eval.waterfall.sources["rows"].read == 50
    write_jsonl(tmp_path / "rows.jsonl", rows[::-1])
    again = prepare(data_of(file, tmp_path / "cache", holdout=0.4), tokenizer)
    assert sorted(again.eval.prompt_hashes.tolist()) == sorted(made.eval.prompt_hashes.tolist())


def test_trap_12_evaluation_prompts_that_are_trained_on_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", pairs(20))
    fresh = [{"prompt": f"Other {number}?", "chosen": "a", "rejected": "b"} for number in range(5)]
    fresh[3]["prompt"] = "  what IS 7 plus\none?"
    held_out = write_jsonl(tmp_path / "test.jsonl", fresh)
    data = data_of(train, tmp_path / "cache", eval=[PairSource(path=str(held_out))])
    with pytest.raises(DataError, match=r"^1 of 5 evaluation rows have a prompt that is also trained on: test:3; remove them"):
        prepare(data, tokenizer)
    made = prepare(data.model_copy(update={"allow_overlap": True}), tokenizer)
    assert len(made.eval) == 5
    assert len(builds(tmp_path / "cache")) == 1, "allowing it tokenizes nothing again"


def test_trap_14_nothing_changed_is_a_hit(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(20))
    data = data_of(file, tmp_path / "cache", max_drop_fraction=0.5)
    first = prepare(data, tokenizer)
    seen: list[int] = []
    again = prepare(data, tokenizer, lambda source, count: seen.append(count))
    assert (again.train.key, again.directory) == (first.train.key, first.directory)
    prepare(data.model_copy(update={"max_drop_fraction": 0.1}), tokenizer, lambda source, count: seen.append(count))
    moved = tmp_path / "moved" / "rows.jsonl"
    moved.parent.mkdir()
    file.rename(moved)
    prepare(data_of(moved, tmp_path / "cache"), tokenizer, lambda source, count: seen.append(count))
    assert seen == []


def test_trap_14_one_changed_character_is_a_miss(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(20))
    keys = []

    def build(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> None:
        keys.append(prepare(data_of(file, tmp_path / "cache", **settings), tokenizer).train.key)

    build(prepared(byte_bpe(), "simple_chat"))
    build(prepared(byte_bpe(), "simple_chat"), max_length=1000)
    build(prepared(byte_bpe(), "simple_chat"), overlong="truncate_prompt_left")
    build(prepared(byte_bpe(), "simple_chat"), limit=19)
    template = prepared(byte_bpe(), "simple_chat").chat_template
    build(prepared(byte_bpe(), template.replace("': '", "':  '")))
    build(prepared(byte_bpe(vocab_size=419), "simple_chat"))
    times = file.stat()
    file.write_text(file.read_text().replace("It is 7.", "It is 8."))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    build(prepared(byte_bpe(), "simple_chat"))
    assert len(set(keys)) == len(keys) == len(builds(tmp_path / "cache")) == 7


def test_trap_38_another_version_of_the_tokenizers_tokenizes_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(5)), tmp_path / "cache")
    before = prepare(data, tokenizer).train.key
    monkeypatch.setattr("rmtrain.data.identity.version", lambda package: f"{package} of tomorrow")
    assert prepare(data, tokenizer).train.key != before


@pytest.mark.parametrize("name", ["train.arrow", "eval.arrow", "manifest.json"])
def test_trap_14_an_artifact_that_was_edited_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(20)), tmp_path / "cache", holdout=0.3)
    file = prepare(data, tokenizer).directory / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if name != "manifest.json" else b"{}")
    with pytest.raises(DataError, match=rf"{name}: (not as it was written|damaged); delete .* to have it made again"):
        prepare(data, tokenizer)
    file.unlink()
    if name != "manifest.json":
        with pytest.raises(DataError, match=r"not as it was written"):
            prepare(data, tokenizer)


def test_nothing_half_written_is_left_after_a_failure(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(30))
    data = data_of(file, tmp_path / "cache")

    def interrupt(source: str, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data, tokenizer, interrupt)
    assert builds(tmp_path / "cache") == []
    assert len(prepare(data, tokenizer).train) == 30


def test_trap_18_losing_too_much_is_refused_and_allowing_it_costs_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows: list[dict[str, Any]] = list(pairs(20))
    rows[4]["rejected"] = rows[4]["chosen"]
    rows[5]["chosen"] = ""
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    with pytest.raises(DataError) as error:
        prepare(data, tokenizer)
    assert str(error.value) == (
        "rows: 2 of 20 rows dropped (10.0 %), allowed 5 %: identical 1 (rows:4: the responses are the same), "
        "empty_response 1 (rows:5: chosen ends with an empty turn); raise data.max_drop_fraction, or repair the rows"
    )
    made = prepare(data.model_copy(update={"max_drop_fraction": 0.1}), tokenizer)
    assert len(made.train) == 18
    assert len(builds(tmp_path / "cache")) == 1


def test_every_source_that_is_refused_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    empty, full = write_jsonl(tmp_path / "empty.jsonl", []), write_jsonl(tmp_path / "full.jsonl", pairs(5))
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "Why?", "chosen": "x y z " * 99, "rejected": "n"}])
    data = data_of(empty, tmp_path / "cache", max_length=50, eval=[PairSource(path=str(full)), PairSource(path=str(long))])
    with pytest.raises(DataError) as error:
        prepare(data, tokenizer)
    assert [problem.split(" (")[0] for problem in error.value.problems] == [
        "empty: it has no rows",
        "long: all of its 1 rows are dropped: too_long 1",
    ]


def test_a_share_that_takes_nothing_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(5)), tmp_path / "cache", holdout=0.0001)
    with pytest.raises(DataError, match=r"^rows: holdout 0.0001 took none of its prompts; raise it$"):
        prepare(data, tokenizer)


def test_sources_keep_their_tags_and_mix_tokens_with_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token_id
    texts = write_jsonl(tmp_path / "texts.jsonl", pairs(3))
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps([{"chosen_ids": [5, 6, end], "rejected_ids": [5, 7, 8, end]}]))
    sources = [PairSource(path=str(texts), tag="mine"), TokenizedSource(path=str(tokens), format="tokenized")]
    made = prepare(Data(train=sources, cache_dir=str(tmp_path / "cache")), tokenizer)
    assert made.train.sources == ["mine"] * 3 + ["tokens"]
    assert made.train[3].sequences == ([5, 6, end], [5, 7, 8, end])
    with pytest.raises(RecipeError, match=r"^tokens: holdout goes by prompt, and rows of tokens do not say where theirs ends"):
        prepare(Data(train=[sources[1].model_copy(update={"holdout": 0.1})], cache_dir=str(tmp_path / "cache")), tokenizer)


def test_sources_that_are_only_evaluated_need_no_training_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = PairSource(path=str(write_jsonl(tmp_path / "test.jsonl", pairs(6))))
    data = data_of(tmp_path / "not_there.jsonl", tmp_path / "cache")
    made = prepare_evaluation([source], data, tokenizer)
    assert made.ids == [f"test:{number}" for number in range(6)]


def test_trap_20_repeats_are_found_in_the_artifact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pairs(6)
    rows += [dict(rows[1]), {"prompt": rows[2]["prompt"].upper(), "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}]
    made = prepare(data_of(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache"), tokenizer)
    repeats = find_repeats(made.train)
    assert repeats.duplicates == [("rows:1", "rows:6")]
    assert repeats.contradictions == [("rows:2", "rows:7")]


def test_a_large_file_passes_in_batches(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 100)
    largest = 0
    inner = prepare_module.encode_batch

    def watch(rows: Any, *rest: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(rows))
        return inner(rows, *rest)

    monkeypatch.setattr(prepare_module, "encode_batch", watch)
    made = prepare(data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(1050)), tmp_path / "cache"), tokenizer)
    assert (len(made.train), largest) == (1050, 100)
    with pa.memory_map(str(made.directory / "train.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 11


def test_the_real_hh_rows_are_prepared_with_a_trained_tokenizer(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "hh_harmless.jsonl.gz"
    data = data_of(file, tmp_path, messages=Messages(transcript="hh"), holdout=0.1, max_length=1024)
    model = ScratchModel(scratch=Architecture(architecture="llama", hidden_size=16, layers=1, heads=1, vocab_size=2000))
    tokenizer = load_tokenizer(model, data)
    made = prepare(data, tokenizer)
    train, held_out = made.train.waterfall.sources["hh_harmless"], made.eval.waterfall.sources["hh_harmless"]
    assert train.read + held_out.read == 1800
    lost = {"empty_response": 4, "role_order": 3, "different_prompts": 2}
    assert {reason: count for reason, count in train.dropped.items() if reason != "too_long"} == lost
    assert set(held_out.dropped) <= {"too_long"}
    assert 0.07 < len(made.eval) / 1800 < 0.13
    assert len(made.train) + len(made.eval) > 1700
    for row in (made.train[0], made.train[len(made.train) - 1], made.eval[0]):
        assert all(sequence[-1] == tokenizer.eos_token_id for sequence in row.sequences)
        assert tokenizer.decode(row.sequences[0][: row.prompt_length]).endswith("Assistant:")
    assert (made.train.unique_tokens < made.train.total_tokens).all(), "guard: prompts are shared"
