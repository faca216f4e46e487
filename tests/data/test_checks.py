import json
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from rmtrain.data.checks import EXAMPLES, Waterfall, check_overlap, find_repeats, overlap
from rmtrain.data.comparison import Dropped
from rmtrain.errors import DataError


def waterfall(kept: int, **dropped: int) -> Waterfall:
    counts = Waterfall()
    for _ in range(kept):
        counts.of("hh").add(kept=1)
    for reason, number in dropped.items():
        counts.of("hh").add(kept=0, dropped=[Dropped(f"hh:{row}", "hh", reason, "why") for row in range(number)])
    return counts


def test_every_row_read_is_kept_or_dropped() -> None:
    counts = waterfall(20, too_long=7, identical=1)
    hh = counts.of("hh")
    assert (hh.read, hh.kept, hh.dropped) == (28, 20, {"too_long": 7, "identical": 1})
    assert hh.examples["too_long"] == [f"hh:{row}: why" for row in range(EXAMPLES)]
    assert counts.kept == 20


def test_rows_gathered_into_others_are_read_and_not_lost() -> None:
    counts = waterfall(10, too_long=1)
    counts.of("hh").add(kept=0, gathered=9)
    assert (counts.of("hh").read, counts.of("hh").kept, counts.of("hh").gathered) == (20, 10, 9)
    assert counts.problems(0.05) == []
    assert counts.problems(0.04)[0].startswith("hh: 1 of 20 rows dropped (5.0 %), allowed 4 %")


def test_it_survives_json() -> None:
    counts = waterfall(20, too_long=7)
    again = Waterfall.from_json(json.loads(json.dumps(counts.to_json())))
    assert again.to_json() == counts.to_json()
    assert counts.to_json()["hh"]["dropped"] == {"too_long": 7}


def test_trap_18_losing_more_than_allowed_is_told_by_source_and_reason() -> None:
    counts = waterfall(1680, empty_response=10, too_long=110)
    assert counts.problems(0.07) == []
    assert counts.problems(0.05) == [
        "hh: 120 of 1800 rows dropped (6.7 %), allowed 5 %: too_long 110 (hh:0: why), empty_response 10 (hh:0: why); "
        "raise data.max_drop_fraction, or repair the rows"
    ]


def test_a_source_of_which_nothing_is_left_is_refused_whatever_is_allowed() -> None:
    assert waterfall(0, too_long=3).problems(1.0) == ["hh: all of its 3 rows are dropped: too_long 3 (hh:0: why)"]
    counts = Waterfall()
    counts.of("empty")
    assert counts.problems(1.0) == ["empty: it has no rows"]


@dataclass
class Rows:
    """Pairs of (prompt, chosen, rejected) by number, as checks see them."""

    ids: list[str]
    prompt_hashes: NDArray[np.uint64]
    response_hashes: NDArray[np.uint64]
    response_counts: NDArray[np.int32]


def rows(name: str, *comparisons: tuple[int, ...]) -> Rows:
    return Rows(
        [f"{name}:{number}" for number in range(len(comparisons))],
        np.array([prompt for prompt, *_ in comparisons], np.uint64),
        np.array([response for _, *responses in comparisons for response in responses], np.uint64),
        np.array([len(comparison) - 1 for comparison in comparisons], np.int32),
    )


def test_trap_12_overlap_lists_the_evaluation_rows() -> None:
    train, held_out = rows("a", (1, 10, 11), (2, 10, 11)), rows("b", (3, 1, 2), (2, 8, 9), (4, 1, 2), (1, 1, 2))
    assert overlap(train, held_out) == ["b:1", "b:3"]
    with pytest.raises(DataError) as error:
        check_overlap(train, held_out)
    assert str(error.value) == (
        "2 of 4 evaluation rows have a prompt that is also trained on: b:1, b:3; remove them, or set data.allow_overlap"
    )
    check_overlap(train, rows("b", (3, 1, 2)))
    check_overlap(rows("a"), held_out)
    check_overlap(train, rows("b"))


def test_trap_20_duplicate_and_contradictory_pairs_are_found_by_row() -> None:
    data = rows(
        "a", (1, 10, 11), (1, 12, 13), (1, 10, 11), (1, 11, 10), (2, 10, 11), (3, 5, 6, 7), (2, 11, 10), (1, 10, 11), (4, 1, 2)
    )
    repeats = find_repeats(data)
    assert repeats.duplicates == [("a:0", "a:2"), ("a:0", "a:7")]
    assert sorted(repeats.contradictions) == [("a:0", "a:3"), ("a:3", "a:7"), ("a:4", "a:6")]


def test_data_without_pairs_has_no_repeats() -> None:
    for data in (rows("a"), rows("a", (1, 2, 3, 4))):
        assert find_repeats(data).duplicates == []
        assert find_repeats(data).contradictions == []
