"""scores.jsonl and its settings: written values are read back exactly, and a malformed line is located."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.data.rows import readers
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import (
    ScoredComparison,
    objective_of,
    prompt_numbers,
    read_scores,
    read_settings,
    settings_file,
    unknown_prompts,
    write_scores,
    write_settings,
)
from rmtrain.recipe.schema import BradleyTerry, PlackettLuce


def float32(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float32).tolist())


def test_trap_06_float32_rewards_round_trip_exactly(tmp_path: Path) -> None:
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


def test_prompt_and_cut_round_trip(tmp_path: Path) -> None:
    """Rows without them have no such keys."""
    plain = ScoredComparison("a:0", "a", (1.0, 0.0), (9, 4), PAIR)
    rows = [plain, replace(plain, id="a:1", prompt="00ff", cut=(5, 0)), replace(plain, id="a:2", prompt="00ff")]
    write_scores(tmp_path / "scores.jsonl", rows)
    assert read_scores(tmp_path / "scores.jsonl") == rows
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [set(line) & {"prompt", "cut"} for line in lines] == [set(), {"prompt", "cut"}, {"prompt"}]
    assert prompt_numbers(rows).tolist() == [0, 1, 1]


def test_prompts_of_other_tools_are_known(tmp_path: Path) -> None:
    """A prompt may be text or messages; rows that have none are named in a note."""
    path = tmp_path / "other.jsonl"
    prompts = ["Hi", [{"role": "user", "content": "Hi"}], [{"content": "Hi", "role": "user"}], "Hi", None]
    path.write_text("".join(row(id=str(number), prompt=prompt) + "\n" for number, prompt in enumerate(prompts)))
    rows = read_scores(path)
    assert prompt_numbers(rows).tolist() == [0, 1, 1, 0, 2]
    (note,) = unknown_prompts(rows)
    assert "1 of 5" in note
    assert unknown_prompts(rows[:4]) == []


def test_numpy_numbers_are_written(tmp_path: Path) -> None:
    scored = ScoredComparison("a", "a", tuple(np.array([1.5, 2.5], np.float32)), tuple(np.array([1, 2])), PAIR)
    write_scores(tmp_path / "scores.jsonl", [scored])
    assert read_scores(tmp_path / "scores.jsonl")[0].rewards == (1.5, 2.5)


def test_minimal_line_is_a_best_first_list(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(
        '{"id": "p", "source": "s", "rewards": [1.5, 2]}\n\n{"id": "q", "source": "s", "rewards": [3, 2, 1], "model": "x"}\n'
    )
    pair, ranked = read_scores(path)
    assert pair == ScoredComparison("p", "s", (1.5, 2.0), (), PAIR)
    assert [(edge.winner, edge.loser) for edge in ranked.preferences] == [(0, 1), (0, 2)]


def test_non_finite_rewards_are_never_written(tmp_path: Path) -> None:
    """They are read, so that `summarize` can name all such rows at once."""
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "p", "source": "s", "rewards": [NaN, Infinity]}\n')
    (scored,) = read_scores(path)
    assert math.isnan(scored.rewards[0])
    assert scored.rewards[1] == math.inf
    before = path.read_bytes()
    with pytest.raises(NumericError, match=r"'p' .*'s'"):
        write_scores(path, [scored])
    assert path.read_bytes() == before


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """No temporary file is left either."""
    path = tmp_path / "scores.jsonl"
    write_scores(path, [ScoredComparison("a", "a", (1.0, 0.0), (), PAIR)])
    before = path.read_bytes()

    def rows() -> object:
        yield ScoredComparison("b", "a", (1.0, 0.0), (), PAIR)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="28"):
        write_scores(path, rows())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def row(**fields: object) -> str:
    return json.dumps({"id": "a", "source": "s", "rewards": [1, 2]} | fields)


MALFORMED = [
    ("not json", "", "column 1"),
    ("[1, 2]", "", "[1, 2]"),
    ("{}", "id, source, rewards: ", ""),
    ('{"id": "a", "source": "s"}', "rewards: ", "id, source"),
    (row(id=3), "id: ", "3"),
    (row(source=None), "source: ", "None"),
    (row(rewards=[1]), "rewards: ", "[1]"),
    (row(rewards=[1, "2"]), "rewards: ", "'2'"),
    (row(rewards=[1, True]), "rewards: ", "True"),
    (row(lengths=[5]), "lengths: ", "[5]"),
    (row(lengths=[5, -1]), "lengths: ", "-1"),
    (row(cut=[5]), "cut: ", "[5]"),
    (row(shown=[0, 2]), "shown: ", "0..1"),
    (row(preferences=[]), "preferences: ", "[]"),
    (row(preferences=[[0, 1]]), "preferences: ", "[0, 1]"),
    (row(preferences=[[0, 1, math.nan, 1, 1]]), "preferences: ", "nan"),
    (row(preferences=[[0, 2, 0, 1, 1]]), "preferences: ", "0 and 2"),
    (row(preferences=[[1, 1, 0, 1, 1]]), "preferences: ", "1 and 1"),
    (row(preferences=[[0, 1, -1, 1, 1]]), "preferences: ", "-1"),
    (row(preferences=[[0, 1, 0, 0.2, 1]]), "preferences: ", "0.2"),
    (row(id="ok"), "", "line 1"),
    (row(rewards=[10**400, 0]), "", "3.403e+38"),
    (row(rewards=[1e308, -1e308]), "", "1e+308"),
    (row(lengths=[10**400, 0]), "lengths: ", "1000"),
    (row(preferences=[[0, 1, 10**400, 1, 1]]), "preferences: ", "1000"),
    (row(preferences=[[0, 1, 0, 1, 1e308]]), "preferences: ", "1e+308"),
    (row(rewards=[9, 0]).replace("9", "9" * 5000), "", "4300 digits"),
    (row(id="\ud800"), "", "surrogate"),
    (row(prompt=[{"content": "\udfff"}]), "", "surrogate"),
    ("[" * 100_000, "", "recursion"),
    ('{"a":' * 100_000, "", "recursion"),
    (row(id=["x" * 10_000]), "id: ", "'xx"),
    (row(rewards="x" * 10_000), "rewards: ", "'xx"),
]


@pytest.mark.parametrize(("line", "key", "shown"), MALFORMED)
def test_malformed_line_is_located(tmp_path: Path, line: str, key: str, shown: str) -> None:
    """One line names the file, the line, the key and the value."""
    path = tmp_path / "scores.jsonl"
    path.write_text(row(id="ok") + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        read_scores(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2  {key}")
    assert shown in problem
    assert "\n" not in problem
    assert len(problem) < 500


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (row().encode() + b"\n\xe9", ":2  "),
        (b'{"id": "\xff"}\n' + row().encode(), ":1  "),
        (row().encode("utf-16"), ": the text is UTF-16"),
        (row().encode("utf-32"), ": the text is UTF-32"),
        (row().encode("latin-1") + b'\n{"x": "\xfc"}', ":2  "),
    ],
)
def test_scores_in_other_encodings_are_refused(tmp_path: Path, content: bytes, start: str) -> None:
    """With the line or the encoding; a byte order mark alone does no harm, and neither does compression."""
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert caught.value.problems[0].startswith(f"{path}{start}")
    (tmp_path / "scores.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + row().encode()))
    assert read_scores(tmp_path / "scores.jsonl.gz")[0].rewards == (1.0, 2.0)


def test_overlong_line_of_scores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read whole, and the lines after it are counted."""
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join([row(id="x" * 10_000), row(), "{}"]))
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert [problem.split()[0] for problem in caught.value.problems] == [f"{path}:1", f"{path}:3"]
    assert "1000 bytes" in caught.value.problems[0]


def test_greatest_rewards_give_finite_numbers(tmp_path: Path) -> None:
    """Within float32 nothing overflows: neither the loss nor its terms."""
    path = tmp_path / "scores.jsonl"
    edges = [[0, 1, 3e38, 1, 3e38], [1, 0, 0, 0.6, 5e-324]]
    lines = [row(rewards=[3e38, -3e38]), row(id="b", rewards=[-3e38, 3e38], lengths=[3, 2**31 - 1], preferences=edges)]
    path.write_text("\n".join(lines))
    summary = summarize(read_scores(path))
    assert summary["accuracy"] == pytest.approx(2 / 3)
    assert json.dumps(summary, allow_nan=False)


def test_up_to_ten_malformed_lines_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("{}\n" * 3)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert [problem.split()[0] for problem in caught.value.problems] == [f"{path}:{line}" for line in (1, 2, 3)]
    path.write_text("{}\n" * 300)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert len(caught.value.problems) == 10


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_settings_are_stored_next_to_scores(tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    assert settings_file(scores) == tmp_path / "scores.settings.json"
    assert settings_file(tmp_path / "scores.jsonl.gz") == tmp_path / "scores.settings.json"
    assert read_settings(scores) is None
    write_settings(scores, {"dtype": "float32", "naïve": None})
    assert read_settings(scores) == {"dtype": "float32", "naïve": None}
    for content in (b"[]", b"{", b"[" * 100_000, b'{"a": "\xff"}', b'{"a": %s}' % (b"9" * 5000), "{}".encode("utf-16")):
        settings_file(scores).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_settings(scores)
        assert caught.value.problems[0].startswith(f"{settings_file(scores)}: ")


def test_objective_of_settings_round_trips(tmp_path: Path) -> None:
    """Settings without an objective, or no settings, mean Bradley-Terry."""
    scores = tmp_path / "scores.jsonl"
    assert objective_of(None, scores) == objective_of({"dtype": "float32"}, scores) == BradleyTerry()
    for objective in (BradleyTerry(center_rewards=0.1), PlackettLuce(type="plackett_luce", center_rewards=0.5)):
        write_settings(scores, {"objective": objective.model_dump(mode="json")})
        assert objective_of(read_settings(scores), scores) == objective
    with pytest.raises(DataError) as caught:
        objective_of({"objective": {"type": "unheard_of"}}, scores)
    assert caught.value.problems[0].startswith(f"{settings_file(scores)}: objective: ")
    assert "unheard_of" in caught.value.problems[0]
