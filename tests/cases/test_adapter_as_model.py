"""An adapter, or a directory that does not exist, in place of a model is named at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import fork_server


@pytest.mark.parametrize("recipe", ["r.yaml", "b.yaml"])
def test_adapter_in_place_of_a_model(recipe: str, case: Callable[[str], Path]) -> None:
    """With and without a tokenizer of its own; the line names the base model."""
    folder = case("adapter_as_model")
    ended = fork_server().run("train", recipe, cwd=folder)
    assert ended.code == 4, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    name = {"r.yaml": "ad", "b.yaml": "ad2"}[recipe]
    assert line.startswith(f"error: model.path: {name} is an adapter of m;")
    for command in (("score", name, "in.jsonl", "-o", "o.jsonl"), ("eval", name, "--data", "d.jsonl")):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 4, ended.stderr
        assert f"{name} is an adapter of m;" in ended.stderr


@pytest.mark.parametrize("path", ["./nope", "m/nope", "runs/a/b", "nope/", "~/no/such/model", "/no/such", "d.jsonl"])
def test_missing_directories_are_named_without_the_hub(path: str, case: Callable[[str], Path]) -> None:
    folder = case("adapter_as_model")
    for command in (
        ("train", "r.yaml", f"model.path={path}"),
        ("score", path, "in.jsonl", "-o", "o.jsonl"),
        ("eval", path, "--data", "d.jsonl"),
    ):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 4, ended.stderr
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert path in line
