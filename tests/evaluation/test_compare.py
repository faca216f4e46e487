"""Two files of scores: paired row by row, or refused with the differences."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, write_scores, write_settings
from tests.evaluation.benchmarks.rows import many, pair

SETTINGS = {"dtype": "float32", "max_length": 2048, "overlong": "cut", "template_sha256": "a" * 64, "rows_sha256": "b" * 64}


def scored(folder: Path, name: str, rows: list[ScoredComparison], settings: dict[str, Any] | None) -> Path:
    path = folder / f"{name}.jsonl"
    write_scores(path, rows)
    if settings is not None:
        write_settings(path, settings)
    return path


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("max_length", 512, "max_length: 2048 against 512"),
        ("dtype", "bfloat16", "dtype: float32 against bfloat16"),
        ("template_sha256", "c" * 64, "template_sha256: aaaaaaaaaaaa… against cccccccccccc…"),
        ("overlong", "error", "overlong: cut against error"),
        ("max_length", None, "max_length: 2048 against none"),
    ],
)
def test_trap_35_unequal_settings_are_refused(tmp_path: Path, key: str, value: Any, line: str) -> None:
    """They compare only when allowed, with a warning that names the setting and both values."""
    rows = many("a", 5, 3)
    one = scored(tmp_path, "one", rows, SETTINGS)
    other = scored(tmp_path, "other", rows, SETTINGS | {key: value})
    with pytest.raises(DataError) as refused:
        compare(one, other)
    assert line in refused.value.problems[0]
    forced = compare(one, other, allow_different=True)
    assert forced["differing"] == [line]
    warning, _ = forced["warnings"]
    assert line in warning
    assert compare(one, one)["differing"] == [], "guard: equal ones compare"


def test_rows_must_be_the_same(tmp_path: Path) -> None:
    rows = many("a", 5, 3)
    one = scored(tmp_path, "one", rows, SETTINGS)
    fewer = scored(tmp_path, "fewer", rows[:-2], SETTINGS)
    for paths in ((one, fewer), (fewer, one)):
        with pytest.raises(DataError) as refused:
            compare(*paths)
        assert refused.value.problems[0].startswith(f"{fewer}: ")
        assert "a/6, a/7" in refused.value.problems[0]
    turned = [*rows[:-1], ScoredComparison("7", "a", (1.0, 0.0, 2.0), (), rows[-1].preferences)]
    other = scored(tmp_path, "turned", turned, SETTINGS)
    with pytest.raises(DataError) as refused:
        compare(one, other)
    assert refused.value.problems[0].startswith(f"{other}: row '7' of 'a' ")


def test_difference_of_pairs(tmp_path: Path) -> None:
    one = [pair("a", 1.0 if number % 2 else -1.0, 0.0, str(number)) for number in range(40)]
    other = [pair("a", 1.0 if number % 4 else -1.0, 0.0, str(number)) for number in range(40)]
    compared = compare(scored(tmp_path, "one", one, None), scored(tmp_path, "other", list(reversed(other)), None))
    assert (compared["one"]["value"], compared["other"]["value"]) == (0.5, 0.75)
    assert summarize(other)["accuracy"] == 0.75
    assert (compared["better"], compared["worse"], compared["equal"]) == (10, 0, 30)
    assert compared["low"] < compared["difference"] == 0.25 < compared["high"]
    assert len(compared["warnings"]) == 2, "neither file has settings or prompts"
    with pytest.raises(DataError, match=r"one\.jsonl"):
        compare(tmp_path / "one.jsonl", scored(tmp_path, "third", other, SETTINGS))


def test_prompts_are_drawn_as_a_whole(tmp_path: Path) -> None:
    """Prompts that one of the files names widen the interval for both, as if each prompt had one row; without them there is a note."""
    one = [pair("a", 1.0, 2.0 * (number // 5 % 2), str(number)) for number in range(500)]
    other = [pair("a", 1.0, 2.0 * (number // 5 % 5 == 0), str(number)) for number in range(500)]
    named = [replace(row, prompt=str(number // 5)) for number, row in enumerate(other)]
    plain, clustered = (
        compare(scored(tmp_path, "one", one, SETTINGS), scored(tmp_path, name, rows, SETTINGS))
        for name, rows in (("plain", other), ("named", named))
    )
    assert plain["difference"] == clustered["difference"] == pytest.approx(0.3)
    assert clustered["high"] - clustered["low"] == pytest.approx(5**0.5 * (plain["high"] - plain["low"]), rel=0.1)
    assert ([len(compared["warnings"]) for compared in (plain, clustered)]) == [1, 0]
    assert "500 of 500" in plain["warnings"][0]


def test_benchmark_is_compared_by_its_score(tmp_path: Path) -> None:
    settings = SETTINGS | {"benchmark": "rewardbench"}
    one = [*many("math-prm", 4, 4), *many("hep-go", 8, 0)]
    other = [*many("math-prm", 8, 0), *many("hep-go", 4, 4)]
    compared = compare(scored(tmp_path, "one", one, settings), scored(tmp_path, "other", other, settings))
    assert compared["metric"] == "rewardbench score"
    assert compared["other"]["value"] == measure(REWARDBENCH, other)["score"]
    assert compared["difference"] == pytest.approx((984 * 0.5 - 164 * 0.5) / (984 + 164))
    assert compared["low"] < compared["difference"] < compared["high"]
