"""Tokenized data of a recipe: cached, checked, with dropped rows and overlap."""

import gzip
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.commands.preprocess import export_columns
from rmtrain.data import prepare as module
from rmtrain.data.checks.contamination import check_overlap, find_overlap
from rmtrain.data.comparison import Dropped, Preference
from rmtrain.data.prepare import (
    Overlap,
    PreparedData,
    drop_reason_of,
    dropped_rows,
    prepare,
    prepare_evaluation,
    read_again,
)
from rmtrain.data.rows import loading
from rmtrain.data.rows.loading import Reading
from rmtrain.data.text.encoder import Encoder
from rmtrain.data.text.tokenizer import load_tokenizer, prepared
from rmtrain.errors import DataError, RecipeError, RmtrainError
from rmtrain.recipe.schema import Architecture, Data, Messages, PairSource, RankedSource, ScratchModel, TokenizedSource
from tests.data.text.test_tokenizer import Patched
from tests.edges import prepared_rows
from tests.edges import row as pair
from tests.helpers import bert_like, byte_bpe, data_of, pairs, write_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def builds(cache: Path) -> list[str]:
    return sorted(folder.name for folder in cache.iterdir())


def test_rows_are_kept_in_order_or_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[dict[str, Any]] = list(pairs(40))
    rows[3] = {"prompt": "q", "chosen": "same", "rejected": "same"}
    rows[9] = {"prompt": "q", "chosen": "a b c " * 400, "rejected": "b"}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with file.open("a") as stream:
        stream.write("{broken\n")
    data = data_of(file, tmp_path / "cache", max_length=100, max_drop_fraction=0.1)
    seen: list[tuple[str, int]] = []
    made = prepare(data, tokenizer, lambda reading: seen.append((reading.source, reading.rows)))
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


def test_batch_size_changes_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(25))
    whole = prepare(data_of(file, tmp_path / "one", holdout=0.3), tokenizer)
    monkeypatch.setattr(loading, "BATCH_ROWS", 4)
    cut = prepare(data_of(file, tmp_path / "two", holdout=0.3), tokenizer)
    assert (list(cut.train), list(cut.eval)) == (list(whole.train), list(whole.eval))
    assert cut.train.key == whole.train.key
    assert len(whole.eval) > 0, "guard: something was held out"


def test_trap_12_prompts_are_in_one_split_only(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
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


def test_trap_12_overlapping_evaluation_prompts_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", pairs(20))
    fresh = [{"prompt": f"Other {number}?", "chosen": "a", "rejected": "b"} for number in range(5)]
    fresh[3]["prompt"] = "  what IS 7 plus\none?"
    held_out = write_jsonl(tmp_path / "test.jsonl", fresh)
    data = data_of(train, tmp_path / "cache", eval=[PairSource(path=str(held_out))])
    with pytest.raises(DataError, match=r"^1 of 5 .*: test:3;.*data.allow_overlap"):
        prepare(data, tokenizer)
    made = prepare(data.model_copy(update={"allow_overlap": True}), tokenizer)
    assert len(made.eval) == 5
    assert len(builds(tmp_path / "cache")) == 1, "to allow it does not tokenize again"


def test_trap_14_unchanged_data_is_not_tokenized_again(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(20))
    data = data_of(file, tmp_path / "cache", max_drop_fraction=0.5)
    first = prepare(data, tokenizer)
    seen: list[int] = []
    again = prepare(data, tokenizer, lambda reading: seen.append(reading.rows))
    assert (again.train.key, again.directory) == (first.train.key, first.directory)
    prepare(data.model_copy(update={"max_drop_fraction": 0.1}), tokenizer, lambda reading: seen.append(reading.rows))
    moved = tmp_path / "moved" / "rows.jsonl"
    moved.parent.mkdir()
    file.rename(moved)
    prepare(data_of(moved, tmp_path / "cache"), tokenizer, lambda reading: seen.append(reading.rows))
    assert seen == []


def test_trap_14_one_changed_character_changes_the_key(tmp_path: Path) -> None:
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


def test_trap_38_a_library_update_changes_the_key(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(5)), tmp_path / "cache")
    before = prepare(data, tokenizer).train.key
    monkeypatch.setattr("rmtrain.data.rows.fingerprint.version", lambda package: f"{package} 99")
    assert prepare(data, tokenizer).train.key != before


def test_trap_38_changed_tokenizer_output_is_refused(tmp_path: Path) -> None:
    """The error names the first text with other tokens."""
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(5)), tmp_path / "cache")
    tokenizer, patched = (
        prepared(
            made(tokenizer_object=byte_bpe().backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>"), "simple_chat"
        )
        for made in (PreTrainedTokenizerFast, Patched)
    )
    made = prepare(data, tokenizer)
    with pytest.raises(DataError) as raised:
        prepare(data, patched)
    assert str(raised.value).startswith(f"{made.directory}: ")
    assert r"'  1e-5\t1e-5'" in str(raised.value)
    assert prepare(data, tokenizer).train.key == made.train.key, "guard: the key is the same"


@pytest.mark.parametrize("name", ["train.arrow", "eval.arrow", "manifest.json"])
def test_trap_14_an_edited_artifact_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(20)), tmp_path / "cache", holdout=0.3)
    file = prepare(data, tokenizer).directory / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if name != "manifest.json" else b"{}")
    with pytest.raises(DataError, match=rf"^{file}: .*delete its directory"):
        prepare(data, tokenizer)
    file.unlink()
    if name != "manifest.json":
        with pytest.raises(DataError, match=rf"/{name}: "):
            prepare(data, tokenizer)


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(30))
    data = data_of(file, tmp_path / "cache")

    def interrupt(reading: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data, tokenizer, interrupt)
    assert builds(tmp_path / "cache") == []
    assert len(prepare(data, tokenizer).train) == 30


def test_trap_18_losing_too_many_rows_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[dict[str, Any]] = list(pairs(20))
    rows[4]["rejected"] = rows[4]["chosen"]
    rows[5]["chosen"] = ""
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache")
    with pytest.raises(DataError) as error:
        prepare(data, tokenizer)
    message = str(error.value)
    assert message.startswith("rows: 2 of 20 ")
    assert "(10.0 %)" in message
    assert re.findall(r"(\w+) 1 \((rows:\d)", message) == [("identical", "rows:4"), ("empty_response", "rows:5")]
    made = prepare(data.model_copy(update={"max_drop_fraction": 0.1}), tokenizer)
    assert len(made.train) == 18
    assert len(builds(tmp_path / "cache")) == 1


def test_every_refused_source_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    empty, full = write_jsonl(tmp_path / "empty.jsonl", []), write_jsonl(tmp_path / "full.jsonl", pairs(5))
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "Why?", "chosen": "x y z " * 99, "rejected": "n"}])
    data = data_of(empty, tmp_path / "cache", max_length=50, eval=[PairSource(path=str(full)), PairSource(path=str(long))])
    with pytest.raises(DataError) as error:
        prepare(data, tokenizer)
    empty_source, long_source = error.value.problems
    assert empty_source.startswith("empty: ")
    assert long_source.startswith("long: ")
    assert "too_long 1 (long:0" in long_source


def test_a_holdout_without_prompts_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(5)), tmp_path / "cache", holdout=0.0001)
    with pytest.raises(DataError, match=r"^rows: holdout 0.0001 "):
        prepare(data, tokenizer)


def test_sources_of_tokens_and_texts_mix(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token_id
    texts = write_jsonl(tmp_path / "texts.jsonl", pairs(3))
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps([{"chosen_ids": [5, 6, end], "rejected_ids": [5, 7, 8, end]}]))
    sources = [PairSource(path=str(texts), tag="mine"), TokenizedSource(path=str(tokens), format="tokenized")]
    made = prepare(Data(train=sources, cache_dir=str(tmp_path / "cache")), tokenizer)
    assert made.train.sources == ["mine"] * 3 + ["tokens"]
    assert [list(sequence) for sequence in made.train[3].sequences] == [[5, 6, end], [5, 7, 8, end]]
    with pytest.raises(RecipeError, match=r"^tokens: holdout "):
        prepare(Data(train=[sources[1].model_copy(update={"holdout": 0.1})], cache_dir=str(tmp_path / "cache")), tokenizer)


def test_evaluation_sources_need_no_training_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = PairSource(path=str(write_jsonl(tmp_path / "test.jsonl", pairs(6))))
    data = data_of(tmp_path / "not_there.jsonl", tmp_path / "cache")
    made = prepare_evaluation([source], data, tokenizer)
    assert made.ids == [f"test:{number}" for number in range(6)]


def test_a_large_file_is_read_in_batches(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 100)
    largest = 0
    inner = Encoder.encode

    def watch(self: Encoder, rows: Any, **keys: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(rows))
        return inner(self, rows, **keys)

    monkeypatch.setattr(Encoder, "encode", watch)
    made = prepare(data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(1050)), tmp_path / "cache"), tokenizer)
    assert (len(made.train), largest) == (1050, 100)
    with pa.memory_map(str(made.directory / "train.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 11


def several(count: int) -> list[dict[str, Any]]:
    """Return rows of a few prompts, in mixed order, some with very long responses; one row is malformed."""
    rng, rows = random.Random(4), []
    for number in range(count):
        prompt = rng.randrange(count // 4)
        sides = rng.sample([f"It is {prompt}.", "No.", "Perhaps " * 60, f"About {prompt}", "no"], 2)
        rows.append({"prompt": f"Is it {prompt}?", "chosen": sides[0], "rejected": sides[1], "margin": number % 3})
    rows[5]["chosen"] = None
    return rows


def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 7)
    lines = write_jsonl(tmp_path / "lines.jsonl", [*pairs(30), {"prompt": "q", "chosen": "same", "rejected": "same"}])
    with lines.open("a") as stream:
        stream.write("{broken\n\n")
    array = tmp_path / "array.json"
    array.write_text(json.dumps(pairs(20, prompts=4)))
    groups = write_jsonl(tmp_path / "groups.jsonl", several(60))
    tokens = write_jsonl(tmp_path / "tokens.jsonl", [{"chosen_ids": [5, 6 + n, 0], "rejected_ids": [5, 7, 0]} for n in range(9)])
    sources = [
        PairSource(path=str(lines), holdout=0.3),
        PairSource(path=str(array)),
        PairSource(path=str(groups), group_by_prompt=True, margin="margin"),
        TokenizedSource(path=str(tokens), format="tokenized"),
    ]
    folders = []
    for processes in (1, 2):
        settings = {"chat_template": "simple_chat", "max_length": 100, "max_drop_fraction": 0.9, "allow_overlap": True}
        data = Data(train=sources, cache_dir=str(tmp_path / f"cache{processes}"), processes=processes, **settings)
        seen: list[Reading] = []
        made = prepare(data, tokenizer, seen.append)
        folders.append((made.directory, [(reading.source, reading.rows) for reading in seen if reading.doing == "tokenizing"]))
        assert [reading.rows for reading in seen if reading.doing == "gathering"][-1] == 60
    (one, seen_by_one), (two, seen_by_two) = folders
    assert sorted(file.name for file in one.iterdir()) == [
        "dropped.jsonl", "eval.arrow", "gathered.jsonl", "manifest.json", "train.arrow",
    ]  # fmt: skip
    assert all((two / file.name).read_bytes() == file.read_bytes() for file in one.iterdir())
    assert seen_by_one == seen_by_two
    assert [count for source, count in seen_by_one if source == "lines"] == [7, 14, 21, 28, 32]
    assert all(file.stat().st_size > 0 for file in one.iterdir()), "guard: there was something of everything"


def test_trap_40_a_killed_process_is_an_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 20)
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(2000)), tmp_path / "cache", processes=2)

    def kill(reading: Reading) -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with pytest.raises(RmtrainError, match=r"^data.processes:"):
        prepare(data, tokenizer, kill)
    assert builds(tmp_path / "cache") == []


def grouped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **settings: Any) -> PreparedData:
    source = {"group_by_prompt": True, **settings}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    return prepare(data_of(file, tmp_path / "cache", **{"max_drop_fraction": 1.0} | source), tokenizer)


def listed(made: PreparedData, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (made.directory / name).read_text().splitlines()]


def test_rows_of_a_prompt_are_gathered(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "How?", "chosen": "So.", "rejected": "No.", "margin": 1.0},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "Why not?", "margin": 0.0},
        {"prompt": "How?", "chosen": "Thus.", "rejected": "So.", "margin": 0.25},
        {"prompt": "How?", "chosen": "So.", "rejected": "No.", "margin": 1.0},
        {"prompt": "How?", "chosen": "No.", "rejected": "Thus.", "margin": 0.0},
    ]
    made = grouped(tmp_path, tokenizer, rows, margin="margin")
    assert made.train.ids == ["rows:0", "rows:1"]
    first, second = made.train
    own = [tokenizer.decode(sequence[first.prompt_length :]) for sequence in first.sequences]
    assert own == ["So.<|endoftext|>", "No.<|endoftext|>", "Thus.<|endoftext|>"]
    assert first.preferences == (Preference(0, 1, 1.0, weight=2.0), Preference(2, 0, 0.25), Preference(1, 2))
    assert first.prefix_length == first.prompt_length, "guard: the prompt is shared, and computed once"
    assert len(second.sequences) == 2
    counts = made.train.waterfall.sources["rows"]
    assert (counts.read, counts.kept, counts.gathered, counts.dropped) == (5, 2, 3, {})
    assert listed(made, "gathered.jsonl") == [
        {"split": "train", "source": "rows", "id": f"rows:{number}", "comparison": "rows:0"} for number in (2, 3, 4)
    ]
    assert "rows:0" in str(drop_reason_of(made.directory, "train", "rows:3"))
    winners, losers = made.train.preference_lengths()
    lengths = [len(sequence) - first.prompt_length for sequence in first.sequences]
    assert winners.tolist()[:3] == [lengths[0], lengths[2], lengths[1]]
    assert losers.tolist()[:3] == [lengths[1], lengths[0], lengths[2]]
    with pytest.raises(DataError, match=r"^rows:0: 3 "):
        export_columns(made.train, tmp_path / "train.parquet")


def test_an_overlong_response_drops_only_its_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The other responses of its prompt stay, under the id of the first row that is left."""
    long = "Perhaps " * 60
    rows = [
        {"prompt": "How?", "chosen": long, "rejected": "No."},
        {"prompt": "How?", "chosen": "So.", "rejected": "No."},
        {"prompt": "How?", "chosen": "So.", "rejected": "Thus."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": long},
        {"prompt": "Why?", "chosen": long, "rejected": "Who?"},
        {"prompt": "Who?", "chosen": "I.", "rejected": long},
        {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
    ]
    made = grouped(tmp_path, tokenizer, rows, max_length=60)
    assert made.train.ids == ["rows:1", "rows:6"], "the id of the first row that is left"
    assert made.train.response_counts.tolist() == [3, 2]
    assert made.train[0].preferences == (Preference(1, 0), Preference(1, 2))
    assert len(made.train.response_hashes) == 5
    plain = prepare(data_of(write_jsonl(tmp_path / "plain.jsonl", rows[1:2]), tmp_path / "cache"), tokenizer).train
    assert made.train.response_hashes[:2].tolist() == plain.response_hashes.tolist()[::-1]
    counts = made.train.waterfall.sources["rows"]
    assert (counts.read, counts.kept, counts.gathered, counts.dropped) == (7, 2, 1, {"too_long": 4})
    assert [row["id"] for row in listed(made, "dropped.jsonl")] == ["rows:0", "rows:3", "rows:4", "rows:5"]
    assert "too_long" in str(drop_reason_of(made.directory, "train", "rows:3"))
    assert drop_reason_of(made.directory, "train", "rows:1") is None
    with pytest.raises(DataError, match=r"^data.overlong .*: rows:0: \d+ tokens, .* 60; rows:3"):
        grouped(tmp_path, tokenizer, rows, max_length=60, overlong="error")


def test_the_prompt_is_truncated_for_kept_responses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "When? " * 20, "chosen": "So. " * 5, "rejected": "No."},
        {"prompt": "When? " * 20, "chosen": "So. " * 5, "rejected": "Perhaps " * 60},
    ]
    made = grouped(tmp_path, tokenizer, rows, max_length=50, overlong="truncate_prompt_left")
    (row,) = made.train
    assert [len(sequence) <= 50 for sequence in row.sequences] == [True, True]
    assert max(map(len, row.sequences)) == 50
    assert made.train.waterfall.sources["rows"].dropped == {"response_too_long": 1}


def test_every_gathered_row_is_counted_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = several(400)
    made = grouped(tmp_path, tokenizer, rows, max_length=100, holdout=0.3)
    gathered, dropped = ([row["id"] for row in listed(made, name)] for name in ("gathered.jsonl", "dropped.jsonl"))
    lists = [made.train.ids, made.eval.ids, gathered, dropped]
    assert sorted(chain.from_iterable(lists)) == sorted(f"rows:{number}" for number in range(400))
    assert min(map(len, lists)) > 10, "guard: some rows are trained on, held out, gathered, dropped"
    for split in (made.train, made.eval):
        count = split.waterfall.sources["rows"]
        assert count.read == count.kept + count.gathered + sum(count.dropped.values())
        assert len(set(split.prompt_hashes.tolist())) == len(split), "each prompt is there once"
        assert split.response_counts.max() > 2
    prompts = {f"rows:{number}": row["prompt"] for number, row in enumerate(rows)}
    assert {prompts[name] for name in made.train.ids} & {prompts[name] for name in made.eval.ids} == set()


def test_responses_with_equal_tokens_are_merged(tmp_path: Path) -> None:
    tokenizer = prepared(bert_like(), "simple_chat")
    rows = [
        {"prompt": "How?", "chosen": "the road", "rejected": "the oven"},
        {"prompt": "How?", "chosen": "The ROAD", "rejected": "bread"},
        {"prompt": "How?", "chosen": "THE road", "rejected": "the road"},
    ]
    made = grouped(tmp_path, tokenizer, rows)
    (row,) = made.train
    assert row.preferences == (Preference(0, 1), Preference(0, 2))
    assert made.train.waterfall.sources["rows"].dropped == {"identical": 1}
    assert listed(made, "dropped.jsonl")[0]["id"] == "rows:2"


def test_responses_left_out_of_rankings_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["So.", "No.", "Perhaps " * 60, "Thus."]
    rows = [
        {"prompt": f"How {number}?", "answers": [{"text": text, "s": place} for place, text in enumerate(texts)]}
        for number in range(5)
    ]
    rows[2]["answers"][1]["s"] = "N/A"  # type: ignore[index]
    rows[3]["answers"] = [{"text": "So.", "s": 1}, {"text": texts[2], "s": 2}]
    source = RankedSource(
        path=str(write_jsonl(tmp_path / "lists.jsonl", rows)), format="ranked", responses="answers", response="text", score="s"
    )
    data = Data(train=[source], cache_dir=str(tmp_path), chat_template="simple_chat", max_length=60, max_drop_fraction=0.5)
    counts = prepare(data, tokenizer).train.waterfall.sources["lists"]
    assert (counts.read, counts.kept, counts.dropped) == (5, 4, {"too_long": 1})
    assert counts.left_out == {"too_long": 4, "no_score": 1}, "not those of a row that is dropped itself"


def test_real_hh_rows_with_a_trained_tokenizer(shared_data: Path, tmp_path: Path) -> None:
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


def both(
    folder: Path, tokenizer: PreTrainedTokenizerFast, train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> PreparedData:
    folder.mkdir(exist_ok=True)
    source = PairSource(path=str(write_jsonl(folder / "test.jsonl", test)))
    return prepared_rows(folder, tokenizer, train, eval=[source], allow_overlap=True)[0]


def test_trap_12_overlap_is_exact_or_normalised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = [pair("one?", "a", "b"), pair("Two?", "a", "b"), pair("two?", "c", "d"), pair("three?", "a", "b")]
    test = [pair("new?", "a", "b"), pair("two?", "e", "f"), pair(" ONE?", "B", "a"), pair("three?", "b", "a")]
    made = both(tmp_path, tokenizer, train, test)
    assert find_overlap(made.train, made.eval) == [
        Overlap(evaluated=1, trained=2, exact=True, responses_too=False),
        Overlap(evaluated=2, trained=0, exact=False, responses_too=True),
        Overlap(evaluated=3, trained=3, exact=True, responses_too=True),
    ]
    with pytest.raises(DataError) as error:
        check_overlap(made.overlap, made.eval)
    assert error.value.exit_code == 3
    message = str(error.value)
    assert message.startswith("3 of 4 ")
    assert ": test:1, test:2, test:3;" in message
    assert re.findall(r"\d+", message.partition("(")[2]) == ["2", "1"], "exact, and up to case and spacing"


def test_different_prompts_do_not_overlap(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = both(tmp_path, tokenizer, pairs(5), [pair("other?", "a", "b")])
    check_overlap(made.overlap, made.eval)
    nothing = prepared_rows(tmp_path / "alone", tokenizer, pairs(5))[0]
    check_overlap(nothing.overlap, nothing.eval)
    assert find_overlap(nothing.eval, nothing.train) == []
    assert len(find_overlap(nothing.train, nothing.train)) == 5, "guard: it would be found"


def test_the_first_overlapping_rows_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = both(tmp_path, tokenizer, pairs(9), pairs(9))
    with pytest.raises(DataError, match=r"^9 of 9 .*: test:0, test:1, test:2, test:3, test:4 and 4 more;"):
        check_overlap(made.overlap, made.eval)


LINES = [
    '{"prompt": "p0", "chosen": "a", "rejected": "b"}',
    '{"prompt": oops}',
    '{"prompt": "p2", "chosen": "x\\u001b[31m", "rejected": "y"}',
    '{"prompt": "p3", "chosen": "\xff"}',
    '{"prompt": "p4", "chosen": "c", "rejected": "d"}',
]


def lost(number: int, source: str = "rows") -> Dropped:
    return Dropped(f"{source}:{number}", source, "why", "what")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write("\n".join(LINES).encode("latin-1"))
    (tmp_path / "other.jsonl").write_text("\n".join(LINES[:1] + LINES[4:]))
    (tmp_path / "test.jsonl").write_text(LINES[4])
    return Data(
        train=[
            PairSource(path=str(tmp_path / "rows.jsonl.gz")),
            PairSource(path=str(tmp_path / "other.jsonl"), tag="o:1", holdout=0.5),
        ],
        eval=[PairSource(path=str(tmp_path / "test.jsonl"))],
    )


def test_dropped_rows_are_read_again(data: Data) -> None:
    """They come as their sources have them, broken lines as text."""
    rows = {row.id: content for row, content in read_again(data, "train", [lost(3), lost(1), lost(2), lost(1, "o:1")])}
    assert rows == {
        "rows:1": LINES[1],
        "rows:2": {"prompt": "p2", "chosen": "x\x1b[31m", "rejected": "y"},
        "rows:3": '{"prompt": "p3", "chosen": "\\xff"}',
        "o:1:1": {"prompt": "p4", "chosen": "c", "rejected": "d"},
    }
    assert list(rows) == ["rows:1", "rows:2", "rows:3", "o:1:1"], "in the order of sources and rows"


def test_held_out_rows_come_from_training_sources(data: Data) -> None:
    found = dict(read_again(data, "eval", [lost(0, "o:1"), lost(0, "test")]))
    assert [content["prompt"] for content in found.values() if isinstance(content, dict)] == ["p4", "p0"]


def test_a_source_is_read_no_further_than_needed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(source: PairSource):  # type: ignore[no-untyped-def]
        for number, row in read_rows(source):
            read.append(number)
            yield number, row

    read_rows = module.read_rows
    monkeypatch.setattr(module, "read_rows", counting)
    assert len(list(read_again(data, "train", [lost(1)]))) == 1
    assert read == [0, 1]
    assert list(read_again(data, "train", [])) == []
    assert read == [0, 1], "guard: nothing is read for nothing"


def test_dropped_rows_are_listed_by_split(tmp_path: Path) -> None:
    records = [
        {"split": split, "source": "a", "id": f"a:{number}", "reason": "identical", "detail": "the same"}
        for number, split in enumerate(["train", "eval", "train"])
    ]
    (tmp_path / "dropped.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [row.id for row in dropped_rows(tmp_path, "train")] == ["a:0", "a:2"]
    assert list(dropped_rows(tmp_path, "eval")) == [Dropped("a:1", "a", "identical", "the same")]


def test_artifact_of_other_data_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An intact artifact under the name of another key is not what that key stands for."""
    made = [
        prepare(data_of(write_jsonl(tmp_path / f"{name}.jsonl", pairs(count)), tmp_path / name), tokenizer).directory
        for name, count in (("mine", 20), ("other", 21))
    ]
    shutil.rmtree(made[0])
    shutil.copytree(made[1], made[0])
    with pytest.raises(DataError, match=rf"^{made[0]}/manifest.json: ") as error:
        prepare(data_of(tmp_path / "mine.jsonl", tmp_path / "mine"), tokenizer)
    assert str(error.value).count(str(made[0])) == 1
    assert made[0].name != made[1].name, "guard"


def test_problems_of_all_sources_come_together(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each is one line that begins with the place; files that cannot be found or read, and rows that cannot be used."""
    good = write_jsonl(tmp_path / "good.jsonl", pairs(20))
    (tmp_path / "latin.csv").write_bytes(b"prompt,chosen,rejected\n" + b"q,a,b\n" * 1500 + b"q,caf\xe9,b\n")
    (tmp_path / "array.json").write_text('[\n{"prompt": "q"},\n]')
    write_jsonl(tmp_path / "columns.jsonl", [{"question": "q", "chosen": "a", "rejected": "b"}] * 3)
    write_jsonl(tmp_path / "empty.jsonl", [{"prompt": "q", "chosen": "", "rejected": "b"}] * 3)
    names = ("latin.csv", "array.json", "columns.jsonl", "missing.jsonl", "empty.jsonl")
    sources = [PairSource(path=str(tmp_path / name), prompt="prompt") for name in names]
    data = data_of(good, tmp_path / "cache").model_copy(update={"eval": (*sources, PairSource(path=str(tmp_path / "*.jsonl")))})
    for change in ({}, {"eval": data.eval[2:3], "train": data.eval[:1], "processes": 2}):
        with pytest.raises(DataError) as error:
            prepare(data.model_copy(update=change), tokenizer)
        problems = error.value.problems
        expected = {
            f"{tmp_path}/latin.csv:1502: ": 1,
            f"{tmp_path}/array.json:3:1: ": 1,
            'columns: no column "prompt"': 1,
            f"{tmp_path}/missing.jsonl does": 1,
            "empty: the first 3 rows are all refused (empty_response): empty.jsonl:1: ": 1,
            f"{tmp_path}/*.jsonl: ": 1,
        }
        found = {start: sum(problem.startswith(start) for problem in problems) for start in expected}
        assert {start for start, count in found.items() if count == 1} >= set(list(expected)[:3:2]), problems
        if not change:
            assert found == expected, problems
            assert len(problems) == len(expected)
        assert all("\n" not in problem and problem.count(f"{tmp_path}/") <= 1 for problem in problems)


def test_dropped_rows_have_file_and_line(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Row numbers are no line numbers where lines are empty or cells span lines."""
    rows = [json.dumps(row) for row in pairs(8)]
    rows[3] = '\n{"prompt": "q", "chosen": "same", "rejected": "same"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "rows.csv").write_text('prompt,chosen,rejected\n"p\nq",a,b\np,same,same\nq,c,d\n')
    for name, line, row_id in (("rows.jsonl", 5, "rows:3"), ("rows.csv", 4, "rows:1")):
        with pytest.raises(DataError, match=rf"identical 1 \({row_id}: {name}:{line}: .*; remove these rows"):
            prepare(data_of(tmp_path / name, tmp_path / "cache", max_drop_fraction=0.0), tokenizer)


READING = "{% if tools %}{{ tools | length }} tools {% endif %}{{ mood }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "add"}}


def test_variables_are_part_of_the_key(tmp_path: Path) -> None:
    """Each way to fill a template variable gives other tokens, and another artifact; what is not filled is counted."""
    rows = [{**row, "tools": [TOOL] if number else None, "mood": "calm "} for number, row in enumerate(pairs(4))]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    mood = {"template_columns": {"mood": "mood"}}
    made = {}
    for keys, fixed, unset in (
        ({}, {}, {"tools": 3, "mood": 4}),
        ({"tools": "tools"}, {}, {"mood": 4}),
        ({"tools": "tools"}, {"mood": "glad "}, {}),
        ({"tools": "tools"}, {"mood": "sad "}, {}),
        ({"tools": "tools"} | mood, {"mood": "sad "}, {}),
    ):
        tokenizer = prepared(byte_bpe(), READING, fixed)
        data = data_of(file, tmp_path / "cache", chat_template=READING, chat_template_kwargs=fixed).model_copy(
            update={"train": (PairSource(path=str(file), **keys),)}
        )
        result = prepare(data, tokenizer)
        assert result.train.waterfall.sources["rows"].unset == unset
        made[result.train.key] = [tokenizer.decode(row.sequences[0]).partition("<user>")[0] for row in result.train]
    assert list(made.values()) == [
        ["", "", "", ""],
        ["", *["1 tools "] * 3],
        ["glad ", *["1 tools glad "] * 3],
        ["sad ", *["1 tools sad "] * 3],
        ["calm ", *["1 tools calm "] * 3],
    ]
    assert len(made) == len(builds(tmp_path / "cache")) == 5


def test_columns_for_unread_variables_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """All at once, each by its key, before a row is read."""
    missing = tmp_path / "missing.jsonl"
    sources = [PairSource(path=str(missing), tools="t", template_columns={"mood": "m"}), PairSource(path=str(missing))]
    data = data_of(missing, tmp_path / "cache").model_copy(update={"train": sources[1:], "eval": sources})
    with pytest.raises(RecipeError) as refused:
        prepare(data, tokenizer)
    keys = [problem.split(":")[0] for problem in refused.value.problems]
    assert keys == ["data.eval.0.tools", "data.eval.0.template_columns.mood"]


def test_rows_that_a_template_refuses_are_dropped(tmp_path: Path) -> None:
    """For whatever it raises; the others are kept, also where the tokenizer is trained on the same rows."""
    template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}{% endif %}"
        "{{ 1 // (m.content | length - 3) }}{{ m.content }}{% endfor %}"
    )
    rows = pairs(40)
    rows[3]["prompt"], rows[5]["rejected"], rows[7]["chosen"] = "bad?", "too bad", "yes"
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = data_of(file, tmp_path / "cache", chat_template=template, max_drop_fraction=0.1)
    sizes = Architecture(architecture="llama", hidden_size=32, layers=1, heads=2, vocab_size=300)
    made = prepare(data, load_tokenizer(ScratchModel(scratch=sizes), data))
    count = made.train.waterfall.sources["rows"]
    assert (count.kept, count.dropped) == (37, {"template_refused": 3})
    details = {row.id: row.detail for row in dropped_rows(made.directory, "train")}
    assert details.keys() == {"rows:3", "rows:5", "rows:7"}
    assert details["rows:3"].endswith("no bad words")
    assert "ZeroDivisionError" in details["rows:7"]
    strict = data.model_copy(update={"max_drop_fraction": 0.05})
    with pytest.raises(DataError, match=r"template_refused 3 \(rows:3: .*no bad words;"):
        prepare(strict, load_tokenizer(ScratchModel(scratch=sizes), strict))
