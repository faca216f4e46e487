from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import HASH_RANGE, Comparison, Dropped, is_held_out, prompt_hash
from rmtrain.data.rows.adapt import RawBatch
from rmtrain.data.rows.select import is_drawn, select
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource
from rmtrain.recipe.sources import Cap, Condition, read_hook
from tests.helpers import pairs


def batch_of(rows: list[dict[str, Any]], *, is_first: bool = True, begin: int = 0, **keys: Any) -> RawBatch:
    return RawBatch(PairSource(path="pairs.jsonl", **keys), list(enumerate(rows, begin)), is_first)


def fates(batch: RawBatch) -> dict[str, str]:
    return {row.id: row.reason if isinstance(row, Dropped) else "kept" for row in select(batch).rows}


def test_without_wishes_rows_are_only_adapted() -> None:
    selection = select(batch_of(pairs(3)))
    assert all(isinstance(row, Comparison) for row in selection.rows)
    assert selection.groups == {}


def test_rows_that_do_not_pass_are_filtered_before_anything_else_is_asked_of_them() -> None:
    rows = [{**row, "score": number} for number, row in enumerate(pairs(4))]
    rows[0]["chosen"] = None
    rows[3]["chosen"] = ""
    assert fates(batch_of(rows, filter=[Condition(column="score", at_least=1)])) == {
        "pairs:0": "filtered", "pairs:1": "kept", "pairs:2": "kept", "pairs:3": "empty_response",
    }  # fmt: skip


def test_a_column_that_no_row_has_is_refused_and_one_that_some_lack_is_a_fault() -> None:
    rows: list[dict[str, Any]] = [{**row, "score": 3} for row in pairs(3)]
    del rows[1]["score"]
    wish = [Condition(column="score", at_least=1)]
    assert fates(batch_of(rows, filter=wish)) == {"pairs:0": "kept", "pairs:1": "missing_column", "pairs:2": "kept"}
    with pytest.raises(DataError) as raised:
        select(batch_of(pairs(3), filter=[Condition(column="scroe", at_least=1)], cap=Cap(by="post", rows=1)))
    assert str(raised.value) == ('pairs: no column "scroe", "post" for filter or cap; it has: prompt, chosen, rejected')
    later = fates(batch_of(pairs(2), is_first=False, begin=1000, filter=wish))
    assert later == {"pairs:1000": "missing_column", "pairs:1001": "missing_column"}


def test_a_first_batch_of_which_all_is_filtered_is_no_error() -> None:
    assert set(fates(batch_of(pairs(3), filter=[Condition(column="prompt", equals="x")])).values()) == {"filtered"}


def test_the_share_of_the_prompts_is_the_same_in_any_order_and_independent_of_the_holdout() -> None:
    rows = pairs(2000, prompts=1000)
    kept = {name for name, fate in fates(batch_of(rows, fraction=0.25)).items() if fate == "kept"}
    prompts = {rows[int(name.partition(":")[2])]["prompt"] for name in kept}
    assert 0.2 < len(prompts) / 1000 < 0.3
    assert len(kept) == 2 * len(prompts), "both rows of a prompt, or none"
    backwards = fates(batch_of(rows[::-1], fraction=0.25))
    assert {rows[::-1][int(name.partition(":")[2])]["prompt"] for name, fate in backwards.items() if fate == "kept"} == prompts
    assert set(fates(batch_of(rows, fraction=0.25)).values()) == {"kept", "not_drawn"}
    assert set(fates(batch_of(rows, fraction=1.0)).values()) == {"kept"}
    hashes = [prompt_hash(row) for row in select(batch_of(rows)).rows if isinstance(row, Comparison)]
    both = sum(is_held_out(value, 0.5) and is_drawn(value, 0.5) for value in hashes) / len(hashes)
    assert 0.2 < both < 0.3, "a quarter is in both halves"
    assert sum(is_drawn(value, 0.1) and not is_drawn(value, 0.3) for value in hashes) == 0, "a larger share holds a smaller one"
    assert is_drawn(HASH_RANGE - 1, 1.0)


def test_prepare_goes_before_filter_and_counts_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def rows(row):\n"
        "    if row['n'] == 0: return None\n"
        "    if row['n'] == 1: return [dict(row, n=part) for part in (3, 9)]\n"
        "    return dict(row, n=row['n'] * 2, chosen=row['chosen'].upper())\n"
    )
    rows = [{**row, "n": number} for number, row in enumerate(pairs(4))]
    batch = batch_of(rows, prepare="mine:rows", filter=[Condition(column="n", at_least=4)])
    batch.source.take(read_hook("mine:rows", tmp_path))
    assert fates(batch) == {
        "pairs:0": "prepared_away", "pairs:1.0": "filtered", "pairs:1.1": "kept", "pairs:2": "kept", "pairs:3": "kept",
    }  # fmt: skip
    kept = {row.id: row for row in select(batch).rows if isinstance(row, Comparison)}
    assert kept["pairs:2"].responses[0][0]["content"] == "IT IS 3."


def test_cells_of_cap_are_known_by_their_value() -> None:
    rows: list[dict[str, Any]] = [
        {**row, "post": {"id": post}} for row, post in zip(pairs(5), ["a", "b", "a", None, None], strict=True)
    ]
    groups = select(batch_of(rows, cap=Cap(by="post.id", rows=1))).groups
    assert groups["pairs:0"] == groups["pairs:2"] != groups["pairs:1"]
    assert groups["pairs:3"] == groups["pairs:4"]
    assert len(groups) == 5
