import numpy as np

from rmtrain.data.comparison import Preference
from rmtrain.data.rows.select import Limits, Marks, content_key, is_limited
from rmtrain.recipe.schema import PairSource
from rmtrain.recipe.sources import Cap


def marks(contents: list[int], groups: list[int]) -> Marks:
    return Marks(np.array(contents, np.uint64), np.array(groups, np.uint64))


def refused(limits: Limits, split: str, contents: list[int], groups: list[int], begin: int = 0) -> dict[str, str]:
    ids = [f"s:{number}" for number in range(begin, begin + len(contents))]
    return {row.id: row.reason for row in limits.refused(split, ids, marks(contents, groups))}


def test_a_duplicate_takes_no_place_of_a_cap() -> None:
    limits = Limits(PairSource(path="s.jsonl", dedup=True, cap=Cap(by="post", rows=2)))
    assert refused(limits, "train", [1, 1, 2, 3], [7, 7, 7, 7]) == {"s:1": "duplicate", "s:3": "capped"}
    assert refused(limits, "train", [2, 4, 5], [7, 7, 8], begin=4) == {"s:4": "duplicate", "s:5": "capped"}


def test_what_is_held_out_is_counted_apart() -> None:
    limits = Limits(PairSource(path="s.jsonl", cap=Cap(by="post", rows=1)))
    assert refused(limits, "train", [1, 2], [7, 7]) == {"s:1": "capped"}
    assert refused(limits, "eval", [3, 4], [7, 7]) == {"s:1": "capped"}


def test_each_alone_and_none() -> None:
    plain, once, capped = (PairSource(path="s.jsonl", **keys) for keys in ({}, {"dedup": True}, {"cap": Cap(by="p", rows=1)}))
    assert [is_limited(source) for source in (plain, once, capped)] == [False, True, True]
    assert refused(Limits(plain), "train", [1, 1], [7, 7]) == {}
    assert refused(Limits(once), "train", [1, 1], [7, 8]) == {"s:1": "duplicate"}
    assert refused(Limits(capped), "train", [1, 1], [7, 8]) == {}


def test_what_a_comparison_says_does_not_depend_on_the_order_of_its_responses() -> None:
    edges = (Preference(0, 1), Preference(1, 2, margin=0.5))
    turned = (Preference(0, 1, margin=0.5), Preference(2, 0))
    assert content_key(1, [10, 11, 12], edges) == content_key(1, [11, 12, 10], turned)
    different = [
        content_key(2, [10, 11, 12], edges),
        content_key(1, [10, 11, 13], edges),
        content_key(1, [10, 11, 12], edges[:1]),
        content_key(1, [10, 11, 12], (Preference(0, 1), Preference(1, 2, margin=0.25))),
        content_key(1, [10, 11, 12], (Preference(1, 0), Preference(1, 2, margin=0.5))),
        content_key(1, [10, 11, 12], (Preference(0, 1, 0.0, 0.5), Preference(1, 2, margin=0.5))),
    ]
    assert len({*different, content_key(1, [10, 11, 12], edges)}) == 7
