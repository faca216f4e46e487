"""docs/EVALUATION.md agrees with the code: benchmarks, formats, options, gates, and a workflow that parses."""

import re
import shlex
from itertools import pairwise

import yaml
from typer.main import get_command

from rmtrain.cli import app
from rmtrain.command_line.model_options import parse_gates
from rmtrain.commands.evaluate_scores import gate_names
from rmtrain.commands.score import CHUNK
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS, named
from rmtrain.intervals import RESAMPLES
from rmtrain.recipe.schema import EvaluationSection
from tests.runs import ROOT

DOC = (ROOT / "docs/EVALUATION.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)


def test_benchmarks_and_formats_are_described() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE))
    assert rows == set(BENCHMARKS)
    formats = re.findall(r"^\| `(\w+)` \| [^|]*\|$", DOC, re.MULTILINE)
    assert set(formats) == {name for name, benchmark in BENCHMARKS.items() if "output" in vars(type(benchmark))}
    assert f"{RESAMPLES:,} resamples" in DOC
    assert f"{CHUNK} lines are scored" in DOC


def test_options_and_gates_of_document_exist() -> None:
    recipe, workflow = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    section = EvaluationSection.model_validate(recipe["evaluation"])
    assert set(section.gates) - set(section.pair_gates) <= set(gate_names([BENCHMARKS[each.name] for each in section.benchmarks]))
    assert len(section.benchmarks) == 2, "guard"
    steps = [step["run"] for step in workflow["jobs"]["train"]["steps"] if "run" in step]
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    commands = [shlex.split(line, comments=True) for line in [*steps, *lines]]
    verbs = {name: {opt for param in verb.params for opt in param.opts} for name, verb in get_command(app).commands.items()}  # type: ignore[attr-defined]
    checked, gates = 0, []
    for program, *arguments in commands:
        if program == "rmtrain":
            options = {argument for argument in arguments if argument.startswith("-") and argument != "-"}
            assert options <= verbs[arguments[0]], arguments
            gates += [gate for option, gate in pairwise(arguments) if option == "--fail-under"]
            checked += 1
    assert checked >= 9, "guard: the commands were found"
    assert len(parse_gates(gates, gate_names(named("rm_bench,rewardbench2")))) == 2
    for option in re.findall(r"`(--[a-z-]+)`", DOC):
        assert any(option in options for options in verbs.values()) or option == "--single_game", option
