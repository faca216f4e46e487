"""Messages that are hidden in text, as JSON or as a Python literal, are found and named."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import rmtrain

DECODE = "data.train.0.messages.decode_json=true"


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("messages_as_json_text")


def test_json_text_is_refused_by_name(folder: Path) -> None:
    ended = rmtrain("preprocess", "h.yaml", cwd=folder, COLUMNS="400")
    assert ended.returncode == 3
    (problem,) = ended.stderr.splitlines()
    assert "(messages_as_text): h.jsonl:1: chosen " in problem
    assert "messages: {decode_json: true}" in problem
    decoded = rmtrain("inspect", "h.yaml", DECODE, "--row", "0", "--json", cwd=folder)
    assert json.loads(decoded.stdout)["prompt"].startswith("User: Question 0"), "the remedy works"


def test_python_literal_is_named(folder: Path) -> None:
    """Lists of messages as `str` and as pandas writes lists of numpy, without commas; JSON that is decoded names it as well."""
    rows = [json.loads(line) for line in (folder / "h.jsonl").read_text().splitlines()]
    for join in (", ", "\n "):
        with (folder / "h.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["chosen", "rejected"])
            for row in rows:
                writer.writerow("[" + join.join(map(str, json.loads(cell))) + "]" for cell in row.values())
        for sets, reason in (((), "messages_as_text"), ((DECODE,), "not_json")):
            ended = rmtrain("preprocess", "h.yaml", "data.train.0.path=h.csv", *sets, cwd=folder, COLUMNS="400")
            assert ended.returncode == 3
            assert f"({reason}): h.csv:2: chosen " in ended.stderr
            assert "Python literal" in ended.stderr
