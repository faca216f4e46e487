from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import (
    HASH_RANGE,
    BadRow,
    Comparison,
    Dropped,
    Preference,
    Target,
    TokenizedComparison,
    is_held_out,
    prompt_hash,
    rows_of,
)
from rmtrain.data.rows.loading import group_by_prompt
from rmtrain.data.rows.select import Limits, RawBatch, check_conditions, content_key, is_drawn, is_limited, select
from rmtrain.errors import DataError
from rmtrain.recipe.load import read_hook
from rmtrain.recipe.schema import PairSource
from rmtrain.recipe.sources import Cap, Condition
from tests.helpers import pairs


def batch_of(rows: list[dict[str, Any]], *, is_first: bool = True, begin: int = 0, **keys: Any) -> RawBatch:
    return RawBatch(PairSource(path="pairs.jsonl", **keys), list(enumerate(rows, begin)), is_first)


def fates(batch: RawBatch) -> dict[str, str]:
    return {row.id: row.reason if isinstance(row, Dropped) else "kept" for row in select(batch).rows}


def test_select_without_keys_only_adapts() -> None:
    selection = select(batch_of(pairs(3)))
    assert all(isinstance(row, Comparison) for row in selection.rows)
    assert selection.groups == {}


def test_filter_runs_before_adapting() -> None:
    """Rows that do not pass are `filtered`, even where they could not be adapted."""
    rows = [{**row, "score": number} for number, row in enumerate(pairs(4))]
    rows[0]["chosen"] = None
    rows[3]["chosen"] = ""
    assert fates(batch_of(rows, filter=[Condition(column="score", at_least=1)])) == {
        "pairs:0": "filtered", "pairs:1": "kept", "pairs:2": "kept", "pairs:3": "empty_response",
    }  # fmt: skip


def test_missing_filter_column_is_refused() -> None:
    """A column that no row of the first batch has is an error; one that some rows lack drops those rows."""
    rows: list[dict[str, Any]] = [{**row, "score": 3} for row in pairs(3)]
    del rows[1]["score"]
    wish = [Condition(column="score", at_least=1)]
    assert fates(batch_of(rows, filter=wish)) == {"pairs:0": "kept", "pairs:1": "missing_column", "pairs:2": "kept"}
    with pytest.raises(DataError) as raised:
        select(batch_of(pairs(3), filter=[Condition(column="scroe", at_least=1)], cap=Cap(by="post", rows=1)))
    assert str(raised.value).startswith("pairs: ")
    assert '"scroe", "post"' in str(raised.value)
    assert str(raised.value).endswith("prompt, chosen, rejected")
    later = fates(batch_of(pairs(2), is_first=False, begin=1000, filter=wish))
    assert later == {"pairs:1000": "missing_column", "pairs:1001": "missing_column"}


def test_fully_filtered_first_batch_is_fine() -> None:
    assert set(fates(batch_of(pairs(3), filter=[Condition(column="prompt", equals="x")])).values()) == {"filtered"}


def test_fraction_is_by_prompt_in_any_order() -> None:
    """`fraction` draws the same prompts in any order, with all rows of a prompt, independently of the holdout."""
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


def test_prepare_runs_before_filter(tmp_path: Path) -> None:
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


def test_cap_groups_by_cell_value() -> None:
    rows: list[dict[str, Any]] = [
        {**row, "post": {"id": post}} for row, post in zip(pairs(5), ["a", "b", "a", None, None], strict=True)
    ]
    groups = select(batch_of(rows, cap=Cap(by="post.id", rows=1))).groups
    assert groups["pairs:0"] == groups["pairs:2"] != groups["pairs:1"]
    assert groups["pairs:3"] == groups["pairs:4"]
    assert len(groups) == 5


def outcome(row: dict[str, Any], **test: Any) -> str:
    try:
        check_conditions(row, (Condition(**{"column": "a", **test}),))
    except BadRow as problem:
        return f"{problem.reason}: {problem.detail}"
    return "passes"


@pytest.mark.parametrize(
    ("cell", "test", "passes"),
    [
        (2, {"at_least": 2}, True),
        (1.99, {"at_least": 2}, False),
        ("2.5", {"at_least": 2}, True),
        ("1e-3", {"at_most": 0.01}, True),
        (" 7 ", {"at_most": 6}, False),
        (None, {"at_least": 0}, False),
        ("", {"at_most": 9}, False),
        (float("nan"), {"at_most": 9}, False),
        ("tie", {"is_not": "tie"}, False),
        ("Tie", {"is_not": "tie"}, True),
        (None, {"is_not": "tie"}, True),
        ({"x": 1}, {"is_not": "tie"}, True),
        ("en", {"equals": "en"}, True),
        (None, {"equals": "en"}, False),
        (["en"], {"equals": "en"}, False),
        ("3", {"equals": 3}, True),
        ("3.0", {"equals": 3}, True),
        (3.0, {"equals": 3}, True),
        (3, {"equals": "3"}, False),
        ("three", {"equals": 3}, False),
        (True, {"equals": True}, True),
        (1, {"equals": True}, False),
        (True, {"equals": 1}, False),
        ("True", {"equals": True}, True),
        ("false", {"equals": False}, True),
        ("no", {"equals": False}, False),
        (0, {"equals": False}, False),
        ("b", {"one_of": ["a", "b"]}, True),
        ("2", {"one_of": [1, 2]}, True),
        ("c", {"one_of": ["a", "b"]}, False),
        (None, {"one_of": ["a"]}, False),
    ],
)
def test_condition_passes_or_filters(cell: Any, test: dict[str, Any], passes: bool) -> None:
    assert (outcome({"a": cell}, **test) == "passes") is passes
    assert passes or outcome({"a": cell}, **test).startswith("filtered: a is ")


def test_filter_detail_is_short() -> None:
    """The detail names the column, the cell and the expected value, and is short for long cells."""
    for cell, test, shown, expected in (
        (1.5, {"at_least": 2}, "a is 1.5", "2"),
        ("tie", {"is_not": "tie"}, "a is 'tie'", "'tie'"),
        (None, {"one_of": ["x", 3]}, "a is null", "'x', 3"),
        ({"b": []}, {"equals": 0.25}, "a is an object", "0.25"),
    ):
        detail = outcome({"a": cell}, **test)  # type: ignore[arg-type]
        assert detail.startswith(f"filtered: {shown}")
        assert detail.endswith(expected)
    assert len(outcome({"a": "text " * 99}, equals="b")) < 80


def test_undecidable_condition_has_its_own_reason() -> None:
    missing = outcome({"b": 1, "c": 2}, at_least=2)
    assert missing.startswith("missing_column: ")
    assert '"a"' in missing
    assert missing.endswith("b, c")
    assert outcome({"a": "high"}, at_least=2).startswith("not_a_number: a is 'high'")
    assert outcome({"a": True}, at_most=2).startswith("not_a_number")
    assert outcome({"a": [1]}, at_most=2).startswith("not_a_number: a is a list")


def test_all_conditions_must_hold() -> None:
    row = {"meta": {"scores": [{"v": "4"}], "lang": "en"}, "a.b": 1}
    between = (Condition(column="meta.scores.0.v", at_least=3), Condition(column="meta.scores.0.v", at_most=5))
    check_conditions(row, (*between, Condition(column="a.b", equals=1), Condition(column="meta.lang", equals="en")))
    with pytest.raises(BadRow, match=r"^filtered: meta\.lang is 'en'"):
        check_conditions(row, (*between, Condition(column="meta.lang", is_not="en")))
    check_conditions(row, ())


def refused(limits: Limits, split: str, contents: list[int], groups: list[int], begin: int = 0) -> dict[str, str]:
    problems = [limits.problem(split, *mark) for mark in zip(contents, groups, strict=True)]
    return {f"s:{number}": problem.reason for number, problem in enumerate(problems, begin) if problem}


def test_duplicate_does_not_count_for_cap() -> None:
    limits = Limits(PairSource(path="s.jsonl", dedup=True, cap=Cap(by="post", rows=2)))
    assert refused(limits, "train", [1, 1, 2, 3], [7, 7, 7, 7]) == {"s:1": "duplicate", "s:3": "capped"}
    assert refused(limits, "train", [2, 4, 5], [7, 7, 8], begin=4) == {"s:4": "duplicate", "s:5": "capped"}


def test_held_out_split_is_counted_separately() -> None:
    limits = Limits(PairSource(path="s.jsonl", cap=Cap(by="post", rows=1)))
    assert refused(limits, "train", [1, 2], [7, 7]) == {"s:1": "capped"}
    assert refused(limits, "eval", [3, 4], [7, 7]) == {"s:1": "capped"}


def test_dedup_and_cap_work_alone() -> None:
    plain, once, capped = (PairSource(path="s.jsonl", **keys) for keys in ({}, {"dedup": True}, {"cap": Cap(by="p", rows=1)}))
    assert [is_limited(source) for source in (plain, once, capped)] == [False, True, True]
    assert refused(Limits(plain), "train", [1, 1], [7, 7]) == {}
    assert refused(Limits(once), "train", [1, 1], [7, 8]) == {"s:1": "duplicate"}
    assert refused(Limits(capped), "train", [1, 1], [7, 8]) == {}


def test_content_key_ignores_response_order() -> None:

    def key(prompt: int, responses: list[int], labels: tuple[Preference | Target, ...], weight: float = 1.0) -> int:
        edges = tuple(label for label in labels if isinstance(label, Preference))
        targets = tuple(label for label in labels if isinstance(label, Target))
        return content_key(prompt, responses, TokenizedComparison("id", "s", ((1,),), 0, 0, edges, targets, weight))

    edges = (Preference(0, 1), Preference(1, 2, margin=0.5))
    turned = (Preference(0, 1, margin=0.5), Preference(2, 0))
    assert key(1, [10, 11, 12], edges) == key(1, [11, 12, 10], turned)
    different = [
        key(2, [10, 11, 12], edges),
        key(1, [10, 11, 13], edges),
        key(1, [10, 11, 12], edges[:1]),
        key(1, [10, 11, 12], (Preference(0, 1), Preference(1, 2, margin=0.25))),
        key(1, [10, 11, 12], (Preference(1, 0), Preference(1, 2, margin=0.5))),
        key(1, [10, 11, 12], (Preference(0, 1, 0.0, 0.5), Preference(1, 2, margin=0.5))),
        key(1, [10, 11, 12], edges, weight=2.0),
        key(1, [10, 11, 12], (Target(0, 1.0), Target(1, 2.0))),
        key(1, [10, 11, 12], (Target(1, 1.0), Target(0, 2.0))),
    ]
    assert len({*different, key(1, [10, 11, 12], edges)}) == 10


def pair_row(number: int, prompt: str, chosen: str, rejected: str, margin: float = 0.0) -> Comparison:
    turns = ({"role": "user", "content": prompt},) if prompt else ()
    sides = tuple(({"role": "assistant", "content": text},) for text in (chosen, rejected))
    return Comparison(f"s:{number}", "s", turns, sides, (Preference(0, 1, margin),))


def texts(comparison: Comparison) -> list[str]:
    return [response[0]["content"] for response in comparison.responses]


def test_rows_of_a_prompt_are_gathered() -> None:
    """Rows with one prompt become one comparison in the place of the first; other rows stay unchanged."""
    lost = Dropped("s:2", "s", "empty_cell", "")
    tokens = TokenizedComparison("t:0", "t", ([1, 9], [2, 9]), 0, 0)
    rows = [
        pair_row(0, "p", "a", "b"),
        pair_row(1, "q", "x", "y"),
        lost,
        pair_row(3, "p", "c", "a", 0.5),
        tokens,
        pair_row(5, "p", "c", "b"),
    ]
    first, second, *others = group_by_prompt(rows)
    assert others == [lost, tokens]
    assert (second, second is rows[1]) == (rows[1], True)
    assert (first.id, first.source, first.prompt) == ("s:0", "s", rows[0].prompt)
    assert texts(first) == ["a", "b", "c"], "each different response once"
    assert first.preferences == (Preference(0, 1), Preference(2, 0, margin=0.5), Preference(2, 1))
    assert [edge.rows for edge in first.preferences] == [("s:0",), ("s:3",), ("s:5",)]
    assert rows_of(first) == ("s:0", "s:3", "s:5")
    assert rows_of(second) == ("s:1",)


def test_gathered_equal_preferences_weigh_more() -> None:
    """Equal preferences weigh together; contradictory ones, and those with other margins, stay."""
    (one,) = group_by_prompt(
        [pair_row(0, "p", "a", "b"), pair_row(1, "p", "b", "a"), pair_row(2, "p", "a", "b"), pair_row(3, "p", "a", "b", 1.0)]
    )
    assert texts(one) == ["a", "b"]
    assert one.preferences == (Preference(0, 1, weight=2.0), Preference(1, 0), Preference(0, 1, margin=1.0))
    assert rows_of(one) == ("s:0", "s:1", "s:2", "s:3")


def test_only_exactly_equal_prompts_are_gathered() -> None:
    rows = [
        pair_row(0, "p", "a", "b"),
        pair_row(1, "P", "a", "b"),
        pair_row(2, "p ", "a", "b"),
        pair_row(3, "", "a", "b"),
        pair_row(4, "", "a", "b"),
    ]
    system = Comparison("s:5", "s", ({"role": "system", "content": "p"},), rows[0].responses)
    assert list(group_by_prompt([*rows, system])) == [*rows, system]


def test_gathered_responses_of_several_messages() -> None:
    turns = [
        ({"role": "assistant", "content": "a"}, {"role": "user", "content": x}, {"role": "assistant", "content": "b"})
        for x in "yz"
    ]
    prompt = ({"role": "user", "content": "p"},)
    rows = [Comparison(f"s:{n}", "s", prompt, (turns[n % 2], turns[1 - n % 2])) for n in range(2)]
    (one,) = group_by_prompt(rows)
    assert one.responses == tuple(turns)
    assert one.preferences == (Preference(0, 1), Preference(1, 0))


def test_gathering_compares_all_message_keys() -> None:
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"x": x}}]} for x in (1, 2, 1)]
    prompt = ({"role": "user", "content": "p"},)
    rows = [Comparison(f"s:{n}", "s", prompt, ((calls[n],), (calls[n + 1],))) for n in range(2)]
    (one,) = group_by_prompt(rows)
    assert one.responses == ((calls[0],), (calls[1],))
    assert one.preferences == (Preference(0, 1), Preference(1, 0))
    tool = ({"role": "tool", "content": "p", "tool_call_id": "c"},)
    assert len(list(group_by_prompt([rows[0], Comparison("s:9", "s", (*prompt, *tool), rows[0].responses)]))) == 2


def test_gathering_keeps_rows_of_groups() -> None:
    group = Comparison(
        "s:4",
        "s",
        pair_row(0, "p", "a", "b").prompt,
        pair_row(0, "p", "a", "b").responses,
        (Preference(0, 1, rows=("s:4", "s:9")),),
    )
    (one,) = group_by_prompt([group, pair_row(5, "p", "b", "a")])
    assert rows_of(one) == ("s:4", "s:5", "s:9")
    late = Comparison("s:8", "s", group.prompt, group.responses, (Preference(0, 1, rows=("s:8", "s:9")),))
    (one,) = group_by_prompt([late, pair_row(5, "p", "c", "a")])
    assert (one.id, rows_of(one)) == ("s:5", ("s:5", "s:8", "s:9")), "its id is that of the first of its rows"


def test_rows_are_in_source_order() -> None:
    edges = tuple(Preference(0, 1, margin=float(n), rows=(f"a:b:{name}",)) for n, name in enumerate(["10", "9", "2.10", "2.9"]))
    comparison = Comparison("a:b:2.9", "a:b", (), pair_row(0, "", "a", "b").responses, edges)
    assert rows_of(comparison) == ("a:b:2.9", "a:b:2.10", "a:b:9", "a:b:10")
