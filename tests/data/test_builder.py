"""The rows of an artifact: selected, encoded and written, each counted once, over any batches and processes."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.builder import RowEncoder
from rmtrain.data.comparison import Comparison, Dropped, is_held_out, prompt_hash
from rmtrain.data.encoded_rows import EncodedRows, RowTask
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.rows import loading
from rmtrain.data.rows.loading import Reading, load_comparisons, read_batches
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.load import read_hook
from rmtrain.recipe.schema import Data, PairSource, RankedSource, Source, TokenizedSource
from rmtrain.recipe.sources import Cap, Condition
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl

WISHES: dict[str, Any] = {
    "filter": [Condition(column="score", at_least=2)],
    "fraction": 0.7,
    "cap": Cap(by="post", rows=2),
    "dedup": True,
    "holdout": 0.3,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 7)


def mixed(count: int) -> list[dict[str, Any]]:
    """Return rows of few prompts with scores and posts; some are repeated, one is too long, one is malformed."""
    rng, rows = random.Random(8), []
    for _ in range(count):
        prompt = rng.randrange(count // 3)
        sides = rng.sample([f"It is {prompt}.", "No.", f"About {prompt}", "no way", "Yes."], 2)
        row = {
            "prompt": f"Is it {prompt}?",
            "chosen": sides[0],
            "rejected": sides[1],
            "score": rng.randrange(5),
            "post": prompt % 9,
        }
        rows.append(row)
    rows[11] = {**rows[11], "chosen": "Perhaps " * 60, "score": 4}
    rows[12] = {**rows[12], "chosen": None, "score": 4}
    return rows


def build(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *sources: Source, processes: int = 1, **settings: Any
) -> PreparedData:
    defaults = {"chat_template": "simple_chat", "max_length": 100, "max_drop_fraction": 1.0, "allow_overlap": True}
    data = Data(train=sources, cache_dir=str(folder / f"cache{processes}"), processes=processes, **{**defaults, **settings})
    return prepare(data, tokenizer)


def dropped(made: PreparedData) -> dict[str, str]:
    lines = (made.directory / "dropped.jsonl").read_text().splitlines()
    found = {row["id"]: row["reason"] for row in map(json.loads, lines)}
    assert len(found) == len(lines), "each row once"
    return found


def every_row_is_in_one_place(made: PreparedData, ids: set[str]) -> None:
    gathered = [json.loads(line)["id"] for line in (made.directory / "gathered.jsonl").read_text().splitlines()]
    counted = Counter([*made.train.ids, *made.eval.ids, *gathered, *dropped(made)])
    assert set(counted) == ids
    assert set(counted.values()) == {1}
    counts = [count for split in (made.train, made.eval) for count in split.waterfall.sources.values()]
    assert sum(count.read for count in counts) == len(ids)
    assert all(count.read == count.kept + count.gathered + sum(count.dropped.values()) for count in counts)


def test_selection_keys_apply_in_their_order(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """`filter`, `fraction`, `dedup`, then `cap`, each split counted on its own; a prompt is drawn or not as a whole."""
    rows = mixed(300)
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), **WISHES)
    made = build(tmp_path, tokenizer, source)
    every_row_is_in_one_place(made, {f"rows:{number}" for number in range(300)})
    reasons = dropped(made)
    assert {name for name, reason in reasons.items() if reason == "filtered"} == {
        f"rows:{number}" for number, row in enumerate(rows) if row["score"] < 2
    }
    seen: set[tuple[str, ...]] = set()
    posts: Counter[tuple[str, int]] = Counter()
    held_out = set(made.eval.ids)
    splits = {rows[int(name[5:])]["prompt"]: "eval" for name in held_out} | {
        rows[int(name[5:])]["prompt"]: "train" for name in made.train.ids
    }
    for number, row in enumerate(rows):
        reason = reasons.get(f"rows:{number}")
        if reason not in (None, "duplicate", "capped"):
            continue
        said = (row["prompt"], row["chosen"].casefold(), row["rejected"].casefold())
        assert (reason == "duplicate") == (said in seen), number
        seen.add(said)
        if reason != "duplicate" and row["prompt"] in splits:
            key = (splits[row["prompt"]], row["post"])
            posts[key] += 1
            assert (reason == "capped") == (posts[key] > 2), number
    fates = Counter(reasons.values())
    assert min(fates[name] for name in ("filtered", "not_drawn", "duplicate", "capped")) >= 3, fates
    assert len(made.train) > 5, "guard"
    assert len(made.eval) > 2, "guard"
    drawn = {row["prompt"] for number, row in enumerate(rows) if reasons.get(f"rows:{number}") not in ("filtered", "not_drawn")}
    left_out = {rows[int(name[5:])]["prompt"] for name, reason in reasons.items() if reason == "not_drawn"}
    assert drawn & left_out == set(), "a prompt is drawn or not"


@pytest.mark.parametrize("gather", [False, True])
def test_batches_and_processes_change_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, gather: bool
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", mixed(120))
    (tmp_path / "mine.py").write_text("def rows(row):\n    return [row, dict(row, post=99)] if row['post'] == 1 else row\n")
    source = PairSource(path=str(file), prepare="mine:rows", group_by_prompt=gather, **WISHES)
    source.take(read_hook("mine:rows", tmp_path))
    one, two = (build(tmp_path, tokenizer, source, processes=processes) for processes in (1, 2))
    for file in one.directory.iterdir():
        assert (two.directory / file.name).read_bytes() == file.read_bytes(), file.name
    monkeypatch.setattr(loading, "BATCH_ROWS", 1000)
    whole = build(tmp_path / "whole", tokenizer, source)
    assert (list(whole.train), list(whole.eval)) == (list(one.train), list(one.eval))
    assert dropped(whole) == dropped(one)
    assert any("." in name.rpartition(":")[2] for name in [*one.train.ids, *dropped(one)]), "guard: rows were made of others"
    assert (one.train.response_counts.max() > 2) == gather, "guard"


def test_dropped_rows_do_not_count_for_cap(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{**row, "post": 1} for row in pairs(4)]
    rows[0]["chosen"] = "Perhaps " * 60
    made = build(
        tmp_path, tokenizer, PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), cap=Cap(by="post", rows=2))
    )
    assert made.train.ids == ["rows:1", "rows:2"]
    assert dropped(made) == {"rows:0": "too_long", "rows:3": "capped"}


def test_intentional_drops_are_not_losses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{**row, "n": number} for number, row in enumerate(pairs(100))]
    rows[1]["chosen"] = rows[1]["rejected"]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    few = PairSource(path=str(file), filter=[Condition(column="n", at_most=49)])
    assert len(build(tmp_path, tokenizer, few, max_drop_fraction=0.02).train) == 49
    with pytest.raises(DataError) as raised:
        build(tmp_path, tokenizer, few, max_drop_fraction=0.01)
    assert str(raised.value).startswith("rows: 1 of 50 ")
    assert "identical 1 (rows:1: " in str(raised.value)
    with pytest.raises(DataError, match=r"^rows: .*filtered 100 \(rows:0: rows\.jsonl:1: n is 0"):
        build(tmp_path, tokenizer, PairSource(path=str(file), filter=[Condition(column="n", at_least=1000)]))


def test_rows_made_by_prepare_have_own_ids(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "mine.py").write_text(
        "def rows(row):\n"
        "    if row['prompt'].startswith('What is 0'): return None\n"
        "    if row['prompt'].startswith('What is 1'): return [row, dict(row, prompt='Why?')]\n"
        "    return row\n"
    )
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(4))), prepare="mine:rows")
    source.take(read_hook("mine:rows", tmp_path))
    made = build(tmp_path, tokenizer, source)
    assert made.train.ids == ["rows:1.0", "rows:1.1", "rows:2", "rows:3"]
    every_row_is_in_one_place(made, {"rows:0", "rows:1.0", "rows:1.1", "rows:2", "rows:3"})
    assert dropped(made) == {"rows:0": "prepared_away"}


def test_trap_14_code_of_prepare_shapes_the_key(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file, keys = write_jsonl(tmp_path / "rows.jsonl", pairs(5)), []
    for folder, code in (("a", "def rows(row):\n    return row\n"), ("b", "def rows(row):\n    return dict(row)\n")):
        for copy in ("one", "two"):
            (tmp_path / copy / folder).mkdir(parents=True)
            (tmp_path / copy / folder / "mine.py").write_text(code)
            source = PairSource(path=str(file), prepare="mine:rows")
            source.take(read_hook("mine:rows", tmp_path / copy / folder))
            keys.append(build(tmp_path, tokenizer, source).train.key)
    assert keys[0] == keys[1] != keys[2] == keys[3]
    with pytest.raises(RecipeError, match=r"^rows: prepare: "):
        build(tmp_path, tokenizer, PairSource(path=str(file), prepare="mine:rows"))


def test_an_error_of_prepare_names_the_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """In this process and in a worker."""
    (tmp_path / "mine.py").write_text("def rows(row):\n    return row if '17' not in row['prompt'] else row['absent']\n")
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(30))), prepare="mine:rows")
    source.take(read_hook("mine:rows", tmp_path))
    for processes in (1, 2):
        with pytest.raises(DataError) as raised:
            build(tmp_path, tokenizer, source, processes=processes)
        assert str(raised.value) == f"rows:17: {tmp_path}/mine.py:2: rows: KeyError: 'absent'"


def test_groups_are_drawn_and_capped_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"q": f"Question {group}?", "text": f"Answer {place} of {group}.", "score": place, "group": group, "topic": group % 3}
        for place in range(3)
        for group in range(60)
    ]
    source = RankedSource(
        path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), format="ranked", group_by="group", response="text", score="score",
        prompt="q", fraction=0.5, cap=Cap(by="topic", rows=4),
    )  # fmt: skip
    made = build(tmp_path, tokenizer, source)
    every_row_is_in_one_place(made, {f"rows:{number}" for number in range(180)})
    reasons = dropped(made)
    for group in range(60):
        fates = {reasons.get(f"rows:{group + 60 * place}") for place in range(3)}
        assert len(fates) == 1, "all rows of a group together"
    assert Counter(reasons.values())["not_drawn"] > 45
    assert Counter(reasons.values())["capped"] > 9
    assert len(made.train) == 12


def test_tokenized_rows_cannot_be_selected_by_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """They do not say where their prompt ends. `dedup` works."""
    end = tokenizer.eos_token_id
    file = write_jsonl(
        tmp_path / "tokens.jsonl", [{"chosen_ids": [5, 6 + n % 2, end], "rejected_ids": [5, 9, end]} for n in range(6)]
    )
    with pytest.raises(RecipeError, match=r"^tokens: fraction "):
        build(tmp_path, tokenizer, TokenizedSource(path=str(file), format="tokenized", fraction=0.5))
    made = build(tmp_path, tokenizer, TokenizedSource(path=str(file), format="tokenized", dedup=True))
    assert made.train.ids == ["tokens:0", "tokens:1"]


def test_progress_reports_rows_of_each_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = PairSource(path=str(write_jsonl(tmp_path / "first.jsonl", pairs(28))))
    second = PairSource(path=str(write_jsonl(tmp_path / "second.jsonl", pairs(28))), limit=14)
    seen: list[Reading] = []
    prepare(Data(train=[first, second], chat_template="simple_chat", cache_dir=str(tmp_path / "cache")), tokenizer, seen.append)
    assert [(reading.source, reading.rows) for reading in seen] == [
        *(("first", rows) for rows in (7, 14, 21, 28)), ("second", 7), ("second", 14),
    ]  # fmt: skip
    assert [reading.share for reading in seen][4:] == [0.5, 1.0]
    assert seen[3].share == 1.0


def test_raw_and_adapted_rows_encode_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 1000)
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(30))))
    encoder = RowEncoder(tokenizer, data_of(tmp_path / "rows.jsonl", tmp_path))
    (raw,), (adapted,) = read_batches(source), load_comparisons(source)
    for holdout in (None, 0.4):
        one, other = (encoder(RowTask(rows, source.model_copy(update={"holdout": holdout}), "train")) for rows in (raw, adapted))
        assert one.keys() == other.keys() == ({"train"} if holdout is None else {"train", "eval"})
        for split in one:
            assert one[split].stored == other[split].stored
            assert one[split].kept == len(one[split].stored)
        held_out = [row.id for row in adapted if isinstance(row, Comparison) and is_held_out(prompt_hash(row), holdout)]
        assert (one["eval"].stored.column("id").to_pylist() if holdout else []) == held_out


def test_a_batch_without_kept_rows_is_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = RowEncoder(tokenizer, data_of(tmp_path / "rows.jsonl", tmp_path, max_length=3))
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(2))))
    (rows,) = load_comparisons(source)
    lost = Dropped("rows:2", "rows", "malformed_row", "why")
    encoded = encoder(RowTask([*rows, lost], source, "eval"))
    assert encoded["eval"] == EncodedRows(None, [], encoded["eval"].dropped)
    assert [(row.id, row.reason) for row in encoded["eval"].dropped] == [
        ("rows:2", "malformed_row"), ("rows:0", "too_long"), ("rows:1", "too_long"),
    ]  # fmt: skip


def test_a_worker_imports_no_heavy_package() -> None:
    code = "import sys, rmtrain.data.builder; print([name for name in ('torch', 'datasets', 'pandas') if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout == "[]\n"
