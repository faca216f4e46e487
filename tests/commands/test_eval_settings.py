"""Trap 35 for pairs: the settings that numbers depend on are stored next to the scores, and scores with others do not compare."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.commands.evaluate import run_eval
from rmtrain.errors import DataError
from tests.exports import tiny_export
from tests.forks import rmtrain
from tests.helpers import pairs, write_jsonl

QUIET = Console(quiet=True)


def test_trap_35_other_settings_do_not_compare(tmp_path: Path) -> None:
    """Pairs scored with another maximum length are refused, and the setting is named with both values."""
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
    assert [setting["max_length"] for setting in settings] == [200, 200, 150]
    assert (settings[0]["rows"], settings[0]["rows_dropped"], settings[0]["dtype"]) == (30, 0, "float32")
    compared = run_eval(EvalOptions(compare=(tmp_path / "a/scores.jsonl", tmp_path / "b/scores.jsonl")), QUIET).document
    assert compared["difference"] == numbers[1]["accuracy"] - numbers[0]["accuracy"]
    assert compared["difference"] != 0, "guard: the models differ"
    with pytest.raises(DataError, match=r"max_length\b.*200.*150"):
        run_eval(EvalOptions(compare=(tmp_path / "a/scores.jsonl", tmp_path / "c/scores.jsonl")), QUIET)
    again = run_eval(EvalOptions(scores=tmp_path / "a/scores.jsonl"), QUIET).document
    assert again["accuracy"] == numbers[0]["accuracy"]


READING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<assistant>' if add_generation_prompt else eos_token }}"
)


def test_template_variables_when_evaluating(tmp_path: Path) -> None:
    """A column of tools is noted, used when it is named, and other defaults than the model's are refused."""
    tiny_export(tmp_path / "model", template=READING)
    tools = [{"type": "function", "function": {"name": "add"}}]
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "tools": tools} for row in pairs(12)])

    def evaluated(*more: str) -> tuple[int, str, list[list[float]]]:
        ended = rmtrain(
            "eval", "model", "--data", "rows.jsonl", "--output", "out", "data.cache_dir=cache", *more, cwd=tmp_path, COLUMNS="300"
        )
        lines = (tmp_path / "out/scores.jsonl").read_text().splitlines()
        return ended.returncode, ended.stderr, [json.loads(line)["rewards"] for line in lines]

    plain, named = evaluated(), evaluated("data.eval.0.tools=tools")
    assert "note: rows: the chat template reads tools, a column of 12 rows" in plain[1]
    assert "note: rows" not in named[1]
    moody = evaluated("data.eval.0.tools=tools", "data.chat_template_kwargs={mood: calm}")
    assert (plain[0], named[0], moody[0]) == (0, 0, 4)
    assert "data.chat_template_kwargs" in moody[1]
    allowed = evaluated("data.eval.0.tools=tools", "data.chat_template_kwargs={mood: calm}", "--allow-template-change")
    assert allowed[0] == 0
    assert plain[2] != named[2] != allowed[2]
