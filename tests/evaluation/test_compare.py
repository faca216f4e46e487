"""Two files of scores: paired, or refused with what differs."""

from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, read_settings, settings_file, write_scores, write_settings
from tests.evaluation.benchmarks.rows import many, pair

SETTINGS = {"dtype": "float32", "max_length": 2048, "overlong": "cut", "template_sha256": "a" * 64, "rows_sha256": "b" * 64}


def scored(folder: Path, name: str, rows: list[ScoredComparison], settings: dict[str, Any] | None) -> Path:
    path = folder / f"{name}.jsonl"
    write_scores(path, rows)
    if settings is not None:
        write_settings(path, settings)
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_length", 512, "max_length: 2048 against 512"),
        ("dtype", "bfloat16", "dtype: float32 against bfloat16"),
        ("template_sha256", "c" * 64, "template_sha256: aaaaaaaaaaaa… against cccccccccccc…"),
        ("overlong", "error", "overlong: cut against error"),
        ("max_length", None, "max_length: 2048 against none"),
    ],
)
def test_trap_35_unequal_settings_are_refused_unless_forced(tmp_path: Path, key: str, value: Any, said: str) -> None:
    rows = many("a", 5, 3)
    one = scored(tmp_path, "one", rows, SETTINGS)
    other = scored(tmp_path, "other", rows, SETTINGS | {key: value})
    with pytest.raises(DataError) as refused:
        compare(one, other)
    assert said in refused.value.problems[0]
    forced = compare(one, other, allow_different=True)
    assert forced["differing"] == [said]
    assert forced["warnings"] == [f"settings differ: {said}"]
    assert compare(one, one)["differing"] == [], "guard: equal ones compare"


def test_rows_must_be_the_same(tmp_path: Path) -> None:
    rows = many("a", 5, 3)
    one = scored(tmp_path, "one", rows, SETTINGS)
    fewer = scored(tmp_path, "fewer", rows[:-2], SETTINGS)
    for paths in ((one, fewer), (fewer, one)):
        with pytest.raises(DataError, match=r"fewer.jsonl: lacks 2 of the rows of the other file: a/6, a/7"):
            compare(*paths)
    turned = [*rows[:-1], ScoredComparison("7", "a", (1.0, 0.0, 2.0), (), rows[-1].preferences)]
    with pytest.raises(DataError, match="row '7' of 'a' has other responses"):
        compare(one, scored(tmp_path, "turned", turned, SETTINGS))


def test_the_difference_of_pairs(tmp_path: Path) -> None:
    one = [pair("a", 1.0 if number % 2 else -1.0, 0.0, str(number)) for number in range(40)]
    other = [pair("a", 1.0 if number % 4 else -1.0, 0.0, str(number)) for number in range(40)]
    found = compare(scored(tmp_path, "one", one, None), scored(tmp_path, "other", list(reversed(other)), None))
    assert (found["one"]["value"], found["other"]["value"]) == (0.5, 0.75)
    assert summarize(other)["accuracy"] == 0.75
    assert (found["better"], found["worse"], found["equal"]) == (10, 0, 30)
    assert found["low"] < found["difference"] == 0.25 < found["high"]
    assert "whether both were scored alike is not known" in found["warnings"][0]
    with pytest.raises(DataError, match=r"settings differ: .*one\.jsonl has none beside it"):
        compare(tmp_path / "one.jsonl", scored(tmp_path, "third", other, SETTINGS))


def test_a_benchmark_is_compared_by_its_score(tmp_path: Path) -> None:
    settings = SETTINGS | {"benchmark": "rewardbench"}
    one = [*many("math-prm", 4, 4), *many("hep-go", 8, 0)]
    other = [*many("math-prm", 8, 0), *many("hep-go", 4, 4)]
    found = compare(scored(tmp_path, "one", one, settings), scored(tmp_path, "other", other, settings))
    assert found["metric"] == "rewardbench score"
    assert found["other"]["value"] == measure(REWARDBENCH, other)["score"]
    assert found["difference"] == pytest.approx((984 * 0.5 - 164 * 0.5) / (984 + 164))
    assert found["low"] < found["difference"] < found["high"]


def test_settings_lie_beside_the_scores(tmp_path: Path) -> None:
    assert settings_file(tmp_path / "scores.jsonl") == tmp_path / "scores.settings.json"
    assert settings_file(tmp_path / "scores.jsonl.gz") == tmp_path / "scores.settings.json"
    assert read_settings(tmp_path / "scores.jsonl") is None
    settings_file(tmp_path / "scores.jsonl").write_text("[]")
    with pytest.raises(DataError, match="expected an object, got list"):
        read_settings(tmp_path / "scores.jsonl")
