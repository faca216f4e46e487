"""scores.jsonl: what is written is read back exactly, and a line that is not a row is named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores, write_scores


def float32(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float32).tolist())


def test_trap_6_float32_rewards_round_trip_exactly(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, size=20_000, dtype=np.uint32).view(np.float32)
    rewards = float32(bits[np.isfinite(bits)])
    smallest_step = (1.0, float(np.nextafter(np.float32(1), np.float32(2))))
    rows = [
        ScoredComparison(f"a:{k}", "a", pair, (3, 4), PAIR)
        for k, pair in enumerate(zip(rewards[::2], rewards[1::2], strict=False))
    ]
    rows.append(ScoredComparison("a:ulp", "a", smallest_step, (3, 4), PAIR))
    write_scores(tmp_path / "scores.jsonl", rows)
    again = read_scores(tmp_path / "scores.jsonl")
    assert again == rows
    assert again[-1].rewards[0] < again[-1].rewards[1]
    assert len(rows) > 9_000, "guard: many bit patterns were tried"


def test_preferences_lengths_and_texts_round_trip(tmp_path: Path) -> None:
    edges = (Preference(2, 0, margin=0.25, probability=0.75, weight=2.0), Preference(1, 0, probability=0.5))
    rows = [ScoredComparison("naïve\n日本:7", "quelle, deux", (0.5, -1.0, 2.0), (10, 11, 9), edges)]
    write_scores(tmp_path / "scores.jsonl", rows)
    assert read_scores(tmp_path / "scores.jsonl") == rows
    assert set(json.loads((tmp_path / "scores.jsonl").read_text())) == {"id", "source", "rewards", "lengths", "preferences"}


def test_numpy_numbers_are_written(tmp_path: Path) -> None:
    row = ScoredComparison("a", "a", tuple(np.array([1.5, 2.5], np.float32)), tuple(np.array([1, 2])), PAIR)
    write_scores(tmp_path / "scores.jsonl", [row])
    assert read_scores(tmp_path / "scores.jsonl")[0].rewards == (1.5, 2.5)


def test_a_minimal_line_is_a_best_first_list(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(
        '{"id": "p", "source": "s", "rewards": [1.5, 2]}\n\n{"id": "q", "source": "s", "rewards": [3, 2, 1], "model": "x"}\n'
    )
    pair, ranked = read_scores(path)
    assert pair == ScoredComparison("p", "s", (1.5, 2.0), (), PAIR)
    assert [(edge.winner, edge.loser) for edge in ranked.preferences] == [(0, 1), (0, 2)]


def test_rewards_that_are_not_finite_are_read_but_never_written(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "p", "source": "s", "rewards": [NaN, Infinity]}\n')
    (row,) = read_scores(path)
    assert math.isnan(row.rewards[0])
    assert row.rewards[1] == math.inf
    before = path.read_bytes()
    with pytest.raises(NumericError, match="'p' of source 's'"):
        write_scores(path, [row])
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_scores(path, [ScoredComparison("a", "a", (1.0, 0.0), (), PAIR)])
    before = path.read_bytes()

    def rows() -> object:
        yield ScoredComparison("b", "a", (1.0, 0.0), (), PAIR)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_scores(path, rows())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


MALFORMED = {
    "not json": "Expecting value",
    "[1, 2]": "expected a JSON object, got '[1, 2]'",
    "{}": "id, source, rewards: missing; the line has no keys",
    '{"id": "a", "source": "s"}': "rewards: missing; the line has id, source",
    '{"id": 3, "source": "s", "rewards": [1, 2]}': "id: expected a string, got 3",
    '{"id": "a", "source": null, "rewards": [1, 2]}': "source: expected a string, got None",
    '{"id": "a", "source": "s", "rewards": [1]}': "rewards: expected a list of two or more numbers, got [1]",
    '{"id": "a", "source": "s", "rewards": [1, "2"]}': "rewards: expected a list of two or more numbers",
    '{"id": "a", "source": "s", "rewards": [1, true]}': "rewards: expected a list of two or more numbers",
    '{"id": "a", "source": "s", "rewards": [1, 2], "lengths": [5]}': "lengths: expected a count of tokens for each of the 2 responses",
    '{"id": "a", "source": "s", "rewards": [1, 2], "lengths": [5, -1]}': "lengths: expected",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": []}': "preferences: expected a list",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[0, 1]]}': "preferences: expected five finite numbers",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[0, 1, NaN, 1, 1]]}': "preferences: expected five finite numbers",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[0, 2, 0, 1, 1]]}': "two different responses among 0..1, got 0 and 2",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[1, 1, 0, 1, 1]]}': "two different responses among 0..1, got 1 and 1",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[0, 1, -1, 1, 1]]}': "margin >= 0",
    '{"id": "a", "source": "s", "rewards": [1, 2], "preferences": [[0, 1, 0, 0.2, 1]]}': "name the likelier side the winner",
    '{"id": "ok", "source": "s", "rewards": [1, 2]}': "row 'ok' of source 's' stands already on line 1; keep one of them",
}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_named_in_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "ok", "source": "s", "rewards": [1, 2]}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_scores(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2  ")
    assert MALFORMED[line] in problem
    assert "\n" not in problem


def test_all_malformed_lines_up_to_ten_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("{}\n" * 3)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert [problem.split()[0] for problem in caught.value.problems] == [f"{path}:{line}" for line in (1, 2, 3)]
    path.write_text("{}\n" * 300)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert len(caught.value.problems) == 10


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="got an empty file"):
        read_scores(path)
