"""`suspects` of a source: listed rows are dropped or turned around, and a list that does not fit its rows is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import Comparison, Dropped, hash_text, prompt_hash
from rmtrain.data.prepare import prepare
from rmtrain.data.rows.select import RawBatch, select
from rmtrain.data.rows.suspects import flipped
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, Source
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl
from tests.runs import tiny_recipe

LABEL = {"by": "value", "column": "better", "values": {"a": "a", "b": "b"}}


def rows_of_source(source: Source, rows: list[dict[str, Any]]) -> list[Any]:
    """The selected rows, in the order of the source."""
    return select(RawBatch(source, list(enumerate(rows)), True)).rows


def write_list(path: Path, rows: list[Any], ids: set[str]) -> Path:
    """What an audit writes for these rows."""
    named = [row for row in rows if isinstance(row, Comparison) and row.id in ids]
    assert len(named) == len(ids), "guard: the rows exist"
    return write_jsonl(path, [{"id": row.id, "source": row.source, "prompt": hash_text(prompt_hash(row))} for row in named])


@pytest.mark.parametrize("labels", ["drop", "flip"])
def test_listed_rows_are_dropped_or_exchanged(labels: str, tmp_path: Path) -> None:
    """A flipped pair is that of the exchanged columns; the other rows are unchanged."""
    rows = pairs(5)
    plain = rows_of_source(PairSource(path="pairs.jsonl"), rows)
    listed = write_list(tmp_path / "s.jsonl", plain, {"pairs:1", "pairs:4"})
    source = PairSource(path="pairs.jsonl", suspects={"file": str(listed), "labels": labels})
    treated = rows_of_source(source, rows)
    by_id = {row.id: row for row in treated}
    assert [row.id for row in treated if row.id in ("pairs:0", "pairs:2", "pairs:3")] == ["pairs:0", "pairs:2", "pairs:3"]
    assert all(by_id[row.id] == row for row in plain if row.id not in ("pairs:1", "pairs:4"))
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    for number in (1, 4):
        row = by_id[f"pairs:{number}"]
        if labels == "drop":
            assert isinstance(row, Dropped)
            assert row.reason == "suspect"
        else:
            assert row == rows_of_source(PairSource(path="pairs.jsonl"), exchanged)[number]
            assert row != plain[number], "guard"


def test_flipping_keeps_margins_and_reverses_rankings() -> None:
    """A pair with a label keeps margin and probability; all preferences of a list are turned around; twice gives the row itself."""
    ab = AbSource(path="x.jsonl", format="ab", a="one", b="two", label=LABEL, margin="gap")
    (row,) = rows_of_source(ab, [{"prompt": "p", "one": "good", "two": "bad", "better": "a", "gap": 2.0}])
    (other,) = rows_of_source(ab, [{"prompt": "p", "one": "good", "two": "bad", "better": "b", "gap": 2.0}])
    assert row.preferences[0].margin == 2.0
    assert flipped(row) == replace(other, winners=row.winners)
    ranked = RankedSource(path="x.jsonl", format="ranked", responses="all", response="text", score="score")
    items = [{"text": text, "score": score} for text, score in (("a", 3), ("b", 2), ("c", 1))]
    (ranking,) = rows_of_source(ranked, [{"prompt": "p", "all": items}])
    edges = {(edge.winner, edge.loser) for edge in ranking.preferences}
    assert {(edge.loser, edge.winner) for edge in flipped(ranking).preferences} == edges
    assert len(edges) == 3, "guard"
    assert flipped(flipped(ranking)) == ranking


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    rows = pairs(3)
    plain = rows_of_source(PairSource(path="pairs.jsonl"), rows)
    good = write_list(tmp_path / "good.jsonl", plain, {"pairs:1"})
    line = json.loads(good.read_text())
    cases: list[tuple[str, Any, list[str]]] = [
        ("missing", None, ["missing.jsonl does not exist"]),
        ("empty", [], ["names no row of this source"]),
        ("other", [line | {"source": "elsewhere"}], ["names no row of this source", "elsewhere"]),
        ("changed", [line | {"prompt": "0" * 16}], ["pairs:1: has another prompt"]),
        ("shape", [line, {"id": 3}], ["shape.jsonl:2: expected an object"]),
        ("types", [line | {"id": 3}], ["types.jsonl:1: expected an object"]),
    ]
    for name, content, parts in cases:
        path = tmp_path / f"{name}.jsonl"
        if content is not None:
            write_jsonl(path, content)
        source = PairSource(path="pairs.jsonl", suspects={"file": str(path)})
        with pytest.raises(DataError) as raised:
            rows_of_source(source, rows)
        assert all(part in str(raised.value) for part in parts), str(raised.value)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(good.read_text() + "{\n")
    with pytest.raises(DataError) as raised:
        rows_of_source(PairSource(path="pairs.jsonl", suspects={"file": str(broken)}), rows)
    assert "broken.jsonl:2" in str(raised.value)


def test_list_is_part_of_the_key(tmp_path: Path) -> None:
    """Tokenized data is made again when the list changes, not when it moves; suspects do not count towards the drop limit."""
    tokenizer = prepared(byte_bpe(), "simple_chat")
    file, cache = write_jsonl(tmp_path / "pairs.jsonl", pairs(20)), tmp_path / "cache"
    plain = rows_of_source(PairSource(path=str(file)), pairs(20))
    one = write_list(tmp_path / "one.jsonl", plain, {f"pairs:{number}" for number in range(5)})
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(one.read_bytes())
    made = {
        name: prepare(data_of(file, cache, **keys), tokenizer).train
        for name, keys in {
            "plain": {},
            "one": {"suspects": {"file": str(one)}},
            "moved": {"suspects": {"file": str(moved)}},
            "flip": {"suspects": {"file": str(one), "labels": "flip"}},
        }.items()
    }
    assert {name: len(data) for name, data in made.items()} == {"plain": 20, "one": 15, "moved": 15, "flip": 20}
    assert made["one"].key == made["moved"].key
    assert made["one"].waterfall.sources["pairs"].dropped == {"suspect": 5}
    write_list(one, plain, {"pairs:1"})
    again = prepare(data_of(file, cache, suspects={"file": str(one)}), tokenizer).train
    assert len(again) == 19
    assert len({again.key, made["plain"].key, made["one"].key, made["flip"].key}) == 4


def test_folds_share_out_the_prompts(tmp_path: Path) -> None:
    """Each training row is held out in exactly one fold, with all rows of its prompt; the recipe's own holdout is never trained on."""
    tokenizer = prepared(byte_bpe(), "simple_chat")
    file, cache = write_jsonl(tmp_path / "pairs.jsonl", pairs(120, prompts=40)), tmp_path / "cache"
    held_out = set(prepare(data_of(file, cache, holdout=0.2, allow_overlap=True), tokenizer).eval.ids)
    seen: list[str] = []
    for number in range(1, 5):
        made = prepare(data_of(file, cache, holdout=0.2, fold={"number": number, "of": 4}), tokenizer)
        fold = [row_id for row_id in made.eval.ids if row_id not in held_out]
        assert held_out <= set(made.eval.ids)
        assert not set(made.train.prompt_hashes.tolist()) & set(made.eval.prompt_hashes.tolist())
        assert len(made.train) + len(made.eval) == 120
        seen += fold
    assert sorted([*seen, *held_out]) == sorted(f"pairs:{number}" for number in range(120))
    assert 0 < len(held_out) < 60, "guard"


def test_recipes_with_folds_have_evaluation_data(tmp_path: Path) -> None:
    """A fold counts as evaluation data, and the number of a fold is one of them."""
    train = {"path": str(tmp_path / "train.jsonl")}
    recipe = tiny_recipe(
        tmp_path,
        data={"train": [train | {"fold": {"number": 5, "of": 5}}], "eval": []},
        evaluation={"every": 2, "gates": {"accuracy": 0.5}},
    )
    assert recipe.data.train[0].holds_out
    with pytest.raises(ValueError, match="expected at most 5"):
        tiny_recipe(tmp_path, data={"train": [train | {"fold": {"number": 6, "of": 5}}], "eval": []})
