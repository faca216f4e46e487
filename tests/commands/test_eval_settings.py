"""Trap 35 for pairs: what their numbers depend on stands beside the scores, and unequal ones do not compare."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.options import EvalOptions
from rmtrain.errors import DataError
from tests.exports import tiny_export
from tests.helpers import pairs, write_jsonl

QUIET = Console(quiet=True)


def test_trap_35_pairs_scored_with_another_max_length_do_not_compare(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs(30))
    for name, seed in (("one", 1), ("two", 2)):
        tiny_export(tmp_path / name, seed=seed)

    def evaluate(model: str, output: str, *overrides: str) -> dict[str, Any]:
        cache = f"data.cache_dir={tmp_path / 'cache'}"
        request = EvalOptions(
            target=str(tmp_path / model),
            data=str(data),
            output=tmp_path / output,
            overrides=(cache, "data.max_length=200", *overrides),
        )
        request.check()
        return run_eval(request, QUIET).document

    numbers = [evaluate("one", "a"), evaluate("two", "b"), evaluate("two", "c", "data.max_length=150")]
    settings = [json.loads((tmp_path / name / "scores.settings.json").read_text()) for name in "abc"]
    assert settings[0] == settings[1] | {"model": str(tmp_path / "one")}
    assert [found["max_length"] for found in settings] == [200, 200, 150]
    assert (settings[0]["rows"], settings[0]["rows_dropped"], settings[0]["dtype"]) == (30, 0, "float32")
    compared = run_eval(EvalOptions(compare=(tmp_path / "a/scores.jsonl", tmp_path / "b/scores.jsonl")), QUIET).document
    assert compared["difference"] == numbers[1]["accuracy"] - numbers[0]["accuracy"]
    assert compared["difference"] != 0, "guard: the models differ"
    with pytest.raises(DataError, match="max_length: 200 against 150"):
        run_eval(EvalOptions(compare=(tmp_path / "a/scores.jsonl", tmp_path / "c/scores.jsonl")), QUIET)
    again = run_eval(EvalOptions(scores=tmp_path / "a/scores.jsonl"), QUIET).document
    assert again["accuracy"] == numbers[0]["accuracy"]
