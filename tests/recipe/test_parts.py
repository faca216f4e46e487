"""Recipes that share parts: files that extend others, several files on the command line, and variables of the environment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.cli import read_recipe, split_arguments
from rmtrain.errors import RecipeError
from rmtrain.recipe.load import MARKER, dump_recipe, hook_files, load_recipe, parse_recipe
from rmtrain.recipe.parts import MAX_FILES
from rmtrain.recipe.schema import BradleyTerry, PretrainedModel, Recipe, Regression, ScratchModel, json_schema
from rmtrain.recipe.variables import LONGEST, escape_variables
from rmtrain.recipe.yaml import MAX_VALUES, write_yaml
from rmtrain.redact import names_secret
from tests.recipe.recipes import GOOD, KINDS, SCRATCH, assert_problems, complete, load, problems

EXAMPLES = 250 if os.environ.get("HYPOTHESIS_PROFILE") == "new" else 25
TOKEN = "hf_" + "aB3" * 12
CHILD = "extends: base.yaml\n"

# What mine.yaml adds to `extends: base.yaml`, what replaces base.yaml, and the problems: `place|key|words of the message`.
BROKEN_EXTENDS: dict[str, tuple[str, str, list[str]]] = {
    "missing": ("extends: nope.yaml", GOOD, ["mine.yaml:1:10|extends|nope.yaml does not exist"]),
    "missing in a list": ("extends: [base.yaml, nope.yaml]", GOOD, ["mine.yaml:1:22|extends.1|nope.yaml"]),
    "all missing": ("extends: [a.yaml, b.yaml]", GOOD, ["mine.yaml:1:11|extends.0|a.yaml", "mine.yaml:1:19|extends.1|b.yaml"]),
    "a directory": ("extends: folder", GOOD, ["mine.yaml:1:10|extends|folder is a directory"]),
    "a device": ("extends: /dev/zero", GOOD, ["mine.yaml:1:10|extends|/dev/zero is a device"]),
    "a number": ("extends: 5", GOOD, ["mine.yaml:1:10|extends|path|got 5"]),
    "nothing": ("extends:", GOOD, ["mine.yaml:1:1|extends|path|got null"]),
    "empty text": ("extends: ''", GOOD, ['mine.yaml:1:10|extends|path|got ""']),
    "a section": ("extends: [base.yaml, {a: 1}]", GOOD, ["mine.yaml:1:22|extends.1|path|a section"]),
    "a NUL": ('extends: "a\\0b"', GOOD, ["mine.yaml:1:10|extends|does not exist"]),
    "a long name": (f"extends: {'a' * 300}", GOOD, ["mine.yaml:1:10|extends|does not exist"]),
    "a secret": ("extends: https://me:hunter2@host/x", GOOD, ["mine.yaml:1:10|extends|password"]),
    "itself": ("extends: mine.yaml", GOOD, ["mine.yaml:1:10|extends|mine.yaml -> mine.yaml"]),
    "a circle": (CHILD, "\nextends: ./mine.yaml", ["base.yaml:2:10|extends|mine.yaml -> base.yaml -> mine.yaml"]),
    "twice": ("extends: [base.yaml, ./base.yaml]", GOOD, ["mine.yaml:1:22|extends.1|base.yaml|already"]),
    "after its child": ("extends: [other.yaml, base.yaml]", GOOD, ["mine.yaml:1:23|extends.1|base.yaml|already"]),
    "not YAML": (CHILD, "run: [", ["base.yaml:1:7||not valid YAML"]),
    "a list": (CHILD, "- 1", ["base.yaml:1:1||run, data and model|a list of 1"]),
    "an empty base": (CHILD, "", ["base.yaml:1:1||run, data and model|nothing"]),
    "an ambiguous base": (CHILD, GOOD + "  clip: None", ['base.yaml:8:9|optimizer.clip|null|"None"']),
    "a key of the base": (CHILD, GOOD.replace("lr:", "learing_rate:"), ["base.yaml:7:3|optimizer.learing_rate|mean lr?"]),
    "a value of the base": (CHILD, GOOD.replace("1e-5", "fast"), ['base.yaml:7:7|optimizer.lr|number|got "fast"']),
    "a value over the base": (CHILD + "optimizer: {lr: fast}", GOOD, ['mine.yaml:2:17|optimizer.lr|number|got "fast"']),
    "a key over the base": (CHILD + "optimizer: {clipp: 1}", GOOD, ["mine.yaml:2:13|optimizer.clipp|mean clip?"]),
    "in both": (
        CHILD + "run: {seed: -1}",
        GOOD.replace("1e-5", "fast"),
        ["mine.yaml:2:13|run.seed|>= 0", "base.yaml:7:7|optimizer.lr|number"],
    ),
    "a list over the base": (CHILD + "data: {train: [{tag: a}]}", GOOD, ["mine.yaml:2:16|data.train.0.path|missing"]),
    "turned off": (CHILD + "optimizer: null", GOOD, ["mine.yaml:2:12|optimizer|a section|got null"]),
    "in neither": (CHILD, GOOD.replace("optimizer:\n  lr: 1e-5\n", ""), ["mine.yaml:1:1|optimizer|missing"]),
    "in a section of neither": (
        CHILD + "optimizer: {clip: 1}",
        GOOD[: GOOD.index("opt")],
        ["mine.yaml:2:1|optimizer.lr|missing"],
    ),
    "a key of another kind": (
        CHILD + "objective: {margin: none}",
        GOOD + "objective: {type: plackett_luce}",
        ["mine.yaml:2:13|objective.margin|plackett_luce|only of bradley_terry"],
    ),
    "a conflict": (
        CHILD + "data: {max_length: 9000}",
        GOOD + "batching: {max_tokens: 2000}",
        ["base.yaml:8:24|batching.max_tokens|9000|got 2000"],
    ),
    "in a section": (CHILD + "model: {extends: a.yaml}", GOOD, ["mine.yaml:2:9|model.extends|top level"]),
    "misspelt": (GOOD + "_base_: a.yaml", GOOD, ["mine.yaml:8:1|_base_|extends: FILE"]),
    "a variable": ("extends: ${NOPE}/base.yaml", GOOD, ["mine.yaml:1:10|extends|NOPE is not set"]),
    "code of the base": (
        "extends: folder/base.yaml",
        GOOD,
        ["folder/base.yaml:4:36|data.train.0.prepare|clean.py next to the recipe|folder/clean.py"],
    ),
}

# Variables, what to replace in GOOD, by what, and the problem.
BROKEN_VARIABLES: dict[str, tuple[dict[str, str], str, str, str]] = {
    "not set": ({}, "1e-5", "${NOPE}", "7:7|optimizer.lr|NOPE is not set|$${NOPE}"),
    "not set in text": ({}, "some/model", '"a/${NOPE}"', "5:15|model.path|NOPE is not set"),
    "in braces without quotes": ({"X": "1"}, "some/model", "${X}", "5:16||not valid YAML|in quotes"),
    "empty": ({"X": ""}, "1e-5", "${X}", "7:7|optimizer.lr|X is empty|null"),
    "no number": ({"X": "fast"}, "1e-5", "${X}", '7:7|optimizer.lr|number|got "fast"'),
    "two numbers": ({"X": "1e-5"}, "1e-5", "${X}${X}", '7:7|optimizer.lr|number|got "1e-51e-5"'),
    "a list": ({"X": "[1e-5]"}, "1e-5", "${X}", '7:7|optimizer.lr|number|got "[1e-5]"'),
    "a section": ({"X": "{lr: 1e-5}"}, "\n  lr: 1e-5", " ${X}", '6:12|optimizer|a section|got "{lr: 1e-5}"'),
    "more keys": ({"X": "1e-5\n  clip: 3"}, "1e-5", "${X}", "7:7|optimizer.lr|number|clip: 3"),
    "a control character": ({"X": "a\x1b[31m"}, "some/model", '"${X}"', "5:15|model.path|X has characters"),
    "bytes that are no text": ({"X": "a\udcff"}, "some/model", '"${X}"', "5:15|model.path|X has characters"),
    "too long": ({"X": "a" * (LONGEST + 1)}, "some/model", '"${X}"', "5:15|model.path|4,097 characters"),
    "of the recipe": ({}, "some/model", '"${run.name}"', '5:15|model.path|${NAME}|got "${run.name}"|$${'),
    "a default": ({"X": "1"}, "1e-5", "${X:-1}", '7:7|optimizer.lr|${NAME}|got "${X:-1}"'),
    "a key in the directory": ({}, "runs/demo", '"${run.name}/a"', "1:31|run.output_dir|${NAME}|write {run.name}"),
    "without braces": ({"X": "1"}, "runs/demo", '"a/$X/b"', '1:31|run.output_dir|got "a/$X/b"|write ${X}'),
    "a name of secrets": ({"HF_TOKEN": "abc"}, "some/model", '"${HF_TOKEN}"', "5:15|model.path|HF_TOKEN|secret|hf auth login"),
    "a secret": ({"X": TOKEN}, "some/model", '"${X}"', "5:15|model.path|X looks like a password or token"),
    "a secret in two parts": ({"X": TOKEN[3:]}, "some/model", '"hf_${X}"', "5:15|model.path|looks like a password or token"),
    "of a process": ({"LOCAL_RANK": "0"}, "demo,", '"r${LOCAL_RANK}",', "1:13|run.name|LOCAL_RANK|processes"),
    "credentials": ({"X": "https://me:pw@host"}, "some/model", '"${X}"', "5:15|model.path|password"),
}


def write(files: Mapping[str, str]) -> None:
    """Write recipes into the current directory."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def refused(*files: str, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The problems of a recipe in several files."""
    with pytest.raises(RecipeError) as raised:
        load_recipe(files, overrides)
    return raised.value.problems


@pytest.mark.parametrize("what", BROKEN_EXTENDS)
def test_a_wrong_part_is_a_problem_there(what: str) -> None:
    """Each problem has the line and column of the file that says it."""
    mine, base, expected = BROKEN_EXTENDS[what]
    in_folder = GOOD.replace("- path: pairs.jsonl", "- {path: pairs.jsonl, prepare: clean:rows}")
    write({"mine.yaml": mine, "base.yaml": base, "other.yaml": CHILD + "lora: {}", "folder/base.yaml": in_folder})
    write({"clean.py": "def rows(row): return row"})
    assert_problems(refused("mine.yaml"), expected)


@pytest.mark.parametrize("what", BROKEN_VARIABLES)
def test_a_wrong_variable_is_a_problem_there(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, old, new, expected = BROKEN_VARIABLES[what]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert GOOD.count(old) == 1, "guard: the recipe is changed in one place"
    assert_problems(problems(GOOD.replace(old, new)), [f"recipe.yaml:{expected}"])
    (line,) = problems(GOOD.replace(old, new))
    assert not any(secret in line for secret in (TOKEN, TOKEN[3:], "abc", "me:pw")), "no secret is shown"


def test_sections_are_merged_and_lists_replaced() -> None:
    base = GOOD + "  clip: 2.0\nlora: {rank: 8, alpha: 4}\nevaluation: {gates: {loss: 1.0}}\n"
    mine = """
extends: base.yaml
data: {train: [{path: a.jsonl}, {path: b.jsonl, holdout: 0.1}]}
optimizer: {lr: 3.0e-6}
lora: {rank: 16}
evaluation: {gates: {accuracy: 0.5}}
"""
    write({"base.yaml": base, "mine.yaml": mine, "off.yaml": "extends: mine.yaml\nlora: null\nevaluation: {gates: {}}\n"})
    recipe = load_recipe("mine.yaml", ["run.seed=5"])
    assert (recipe.optimizer.lr, recipe.optimizer.clip, recipe.run.name, recipe.run.seed) == (3e-6, 2.0, "demo", 5)
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha) == (16, 4.0)
    assert [source.path for source in recipe.data.train] == ["a.jsonl", "b.jsonl"]
    assert recipe.evaluation.gates == {"loss": 1.0, "accuracy": 0.5}
    off = load_recipe("off.yaml")
    assert (off.lora, off.evaluation.gates) == (None, {}), "null and {} take away what a base has"
    assert load_recipe("off.yaml", ["lora.rank=2"]).optimizer.lr == 3e-6


def test_another_kind_replaces_the_section() -> None:
    """Keys of the old kind do not fit the new one; keys of the same kind are merged."""
    base = GOOD.replace("some/model", "some/model, revision: main, dropout: 0.1") + "objective: {margin: scale, weight: 2.0}\n"
    scored = "data: {train: [{path: a, format: scored, response: r, target: t}]}\n"
    write({"base.yaml": base.replace("pairs.jsonl", "pairs.jsonl\n      margin: m")})
    write({"scratch.yaml": f"{CHILD}{SCRATCH}\n", "rated.yaml": f"{CHILD}{scored}objective: {{type: regression}}\n"})
    write({"same.yaml": CHILD + "model: {path: other/model}\nobjective: {type: bradley_terry, label_smoothing: 0.1}\n"})
    scratch, rated, same = (load_recipe(f"{name}.yaml") for name in ("scratch", "rated", "same"))
    assert isinstance(scratch.model, ScratchModel)
    assert scratch.model.dropout == 0.0
    assert isinstance(rated.objective, Regression)
    assert rated.objective.weight == 1.0
    assert isinstance(same.model, PretrainedModel)
    assert (same.model.path, same.model.revision, same.model.dropout) == ("other/model", "main", 0.1)
    assert isinstance(same.objective, BradleyTerry)
    assert (same.objective.margin, same.objective.weight, same.objective.label_smoothing) == ("scale", 2.0, 0.1)
    back = "extends: scratch.yaml\nmodel: {path: some/model}\n"
    write({"back.yaml": back})
    assert isinstance(load_recipe("back.yaml").model, PretrainedModel)


def test_objectives_of_sources_are_merged_by_tag() -> None:
    base = "objective: {type: by_source, sources: {pairs: {margin: none}, type: {type: plackett_luce}}}\n"
    base = GOOD.replace("- path: pairs.jsonl", "- path: pairs.jsonl\n    - {path: b, tag: type}") + base
    write({"base.yaml": base, "mine.yaml": CHILD + "objective: {sources: {type: {type: bradley_terry}, pairs: {weight: 2.0}}}\n"})
    objective = load_recipe("mine.yaml").objective.model_dump()
    assert (objective["sources"]["pairs"]["margin"], objective["sources"]["pairs"]["weight"]) == ("none", 2.0)
    assert objective["sources"]["type"]["type"] == "bradley_terry"


def test_bases_are_read_once_and_first() -> None:
    """Two files that extend the same base both keep what they change."""
    write({"base.yaml": GOOD, "lr.yaml": CHILD + "optimizer: {lr: 3.0e-6}\n", "lora.yaml": CHILD + "lora: {rank: 4}\n"})
    write({"mine.yaml": "extends: [lr.yaml, lora.yaml]\n", "last.yaml": "optimizer: {lr: 9.0e-6}\n"})
    recipe = load_recipe("mine.yaml")
    assert (recipe.optimizer.lr, recipe.lora.rank if recipe.lora else None) == (3e-6, 4)
    assert load_recipe(["lr.yaml", "lora.yaml"]) == load_recipe(["base.yaml", "mine.yaml"]) == recipe
    assert load_recipe(["mine.yaml", "last.yaml"]).optimizer.lr == 9e-6, "later files win"
    assert load_recipe(("mine.yaml", Path("last.yaml")), ["optimizer.lr=1e-6"]).optimizer.lr == 1e-6, "and overrides over all"


def test_paths_of_bases_are_relative_to_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        {
            "a/base.yaml": GOOD,
            "a/b/middle.yaml": "extends: ../base.yaml\nlora: {}\n",
            "c/mine.yaml": "extends: ../a/b/middle.yaml",
        }
    )
    write({"c/home.yaml": "extends: ~/a/base.yaml", "c/variable.yaml": 'extends: ["${PARTS}/base.yaml"]'})
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("PARTS", "../a")
    recipe = load_recipe("a/base.yaml")
    assert load_recipe("c/mine.yaml").lora is not None
    assert load_recipe("c/home.yaml") == load_recipe("c/variable.yaml") == recipe
    monkeypatch.chdir("c")
    assert load_recipe("home.yaml") == recipe
    assert recipe.data.train[0].path == "pairs.jsonl", "guard: paths of data stay relative to the current directory"


def test_a_chain_has_an_end() -> None:
    write({f"{n}.yaml": f"extends: {n + 1}.yaml" for n in range(MAX_FILES)} | {f"{MAX_FILES}.yaml": GOOD})
    (line,) = refused("0.yaml")
    assert line.startswith(f"{MAX_FILES - 1}.yaml:1:10  extends: {MAX_FILES}.yaml: a recipe has at most {MAX_FILES} files")
    assert load_recipe("1.yaml") == load_recipe(f"{MAX_FILES}.yaml"), "guard: one less is allowed"


def test_values_of_all_files_are_counted() -> None:
    many = ", ".join(["{a: 1}"] * 5000)
    write({name: f"data: {{{name[0]}: [{many}]}}" for name in ("a.yaml", "b.yaml")})
    assert_problems(refused("a.yaml", "b.yaml"), [f"b.yaml||more than {MAX_VALUES} values"])


def test_several_files_on_the_command_line() -> None:
    write({"base.yaml": GOOD, "mine.yaml": "optimizer: {lr: 3.0e-6}\nrun: {seed: 2}\n"})
    recipe = read_recipe(["base.yaml", "mine.yaml", "run.seed=7"], None)
    assert (recipe.optimizer.lr, recipe.run.seed, recipe.run.name) == (3e-6, 7, "demo")
    assert read_recipe(["run.seed=7", "base.yaml", "mine.yaml"], None) == recipe
    assert read_recipe(["run.seed=2", "optimizer.lr=3e-6"], Path("base.yaml")) == load_recipe(["base.yaml", "mine.yaml"])
    assert split_arguments(["owner/model", "a.b=1"]) == (["owner/model"], ["a.b=1"])
    assert_problems(refused("base.yaml", "mine.yaml", "mine.yaml"), ["mine.yaml||already"])
    assert_problems(refused("base.yaml", "./base.yaml"), ["base.yaml||already"])
    assert_problems(refused("base.yaml", "gone.yaml"), ["gone.yaml||No such file"])
    with pytest.raises(RecipeError, match="expected the file of a recipe"):
        load_recipe([])


def test_a_mistyped_override_is_named() -> None:
    """A word that is neither an override nor a file is the problem, wherever it stands."""
    write({"base.yaml": GOOD, "mine.yaml": "run: {seed: 2}\n"})
    for words, wrong in (
        (["base.yaml", "optimizer.lr"], ["optimizer.lr"]),
        (["optimizer.lr", "base.yaml"], ["optimizer.lr"]),
        (["base.yaml", "mine.yaml", "seed", "7"], ["seed", "7"]),
        (["owner/model", "lr"], ["lr"]),
    ):
        with pytest.raises(RecipeError) as raised:
            read_recipe(words, None)
        assert_problems(
            [line.replace(": ", "  ", 1) for line in raised.value.problems], [f"{word}||optimizer.lr=1e-5" for word in wrong]
        )
    for words, option in (([], None), (["base.yaml"], Path("mine.yaml"))):
        with pytest.raises(RecipeError, match="either as argument or as --recipe"):
            read_recipe(words, option)


def test_overrides_and_text_extend_nothing() -> None:
    write({"base.yaml": GOOD})
    (line,) = problems(GOOD, ["extends=base.yaml"])
    assert line.startswith("override extends=base.yaml  extends: unknown key; ")
    with pytest.raises(RecipeError, match="mine  extends: unknown key; "):
        parse_recipe(GOOD + "extends: base.yaml", "mine")


def test_a_variable_has_the_type_its_key_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "LR": "3e-6",
        "N": "12345",
        "REV": "12e45678",
        "ON": "true",
        "OFF": "null",
        "DIR": "/scratch/x y",
        "LORA": "~",
        "P": "a: [b",
    }
    for name, value in {**variables, "DIR": "/scratch/x y"}.items():
        monkeypatch.setenv(name, value)
    text = GOOD.replace("1e-5", '${LR}\n  clip: ${OFF}\nhub: {push: "${ON}"}')
    text = (
        text.replace("some/model", '"${P}", revision: "${REV}"').replace("runs/demo", '"${DIR}/${N}"').replace("demo,", '"${N}",')
    )
    recipe = load(text, ["run.seed=${N}", "lora=${LORA}", "data.train.0.tag=x${N}", "data.train.0.split=${N}"])
    assert (recipe.optimizer.lr, recipe.optimizer.clip, recipe.hub.push, recipe.lora) == (3e-6, None, True, None)
    assert (recipe.run.seed, recipe.run.name, recipe.run.output_dir) == (12345, "12345", "/scratch/x y/12345")
    assert isinstance(recipe.model, PretrainedModel)
    assert (recipe.model.path, recipe.model.revision) == ("a: [b", "12e45678")
    assert (recipe.data.train[0].tag, recipe.data.train[0].split) == ("x12345", "12345")
    plain = load(dump_recipe(recipe))
    assert plain == recipe
    assert "${" not in dump_recipe(recipe), "guard: the resolved recipe needs no environment"


def test_variables_name_no_keys_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Braces and dollars in the value of a variable are text."""
    monkeypatch.setenv("X", "{run.name}${Y}")
    recipe = load(GOOD.replace("runs/demo", '"${X}/{run.name}"').replace("some/model", '"${X}"'))
    assert recipe.run.output_dir == "{run.name}${Y}/demo"
    assert recipe.model.model_dump()["path"] == "{run.name}${Y}"
    assert load(dump_recipe(recipe)) == recipe


def test_what_is_overridden_needs_no_variable() -> None:
    write({"base.yaml": GOOD.replace("1e-5", "${NOPE}"), "mine.yaml": CHILD + "optimizer: {lr: 1.0e-4}\n"})
    assert load_recipe("mine.yaml").optimizer.lr == load_recipe("base.yaml", ["optimizer.lr=1e-4"]).optimizer.lr == 1e-4
    assert_problems(refused("base.yaml"), ["base.yaml:7:7|optimizer.lr|NOPE"])


def test_an_escaped_variable_is_text() -> None:
    recipe = load(GOOD, ["data.chat_template='$${X} $$${Y} $Z {{ a }} $${'"])
    assert recipe.data.chat_template == "${X} $${Y} $Z {{ a }} ${"
    assert "$${X} $$${Y} $Z {{ a }} $${" in dump_recipe(recipe)
    assert load(dump_recipe(recipe)) == recipe


@settings(max_examples=max(EXAMPLES, 100), deadline=None)
@given(text=st.text(alphabet="${}AB a", max_size=16))
def test_any_text_survives_the_escape(text: str) -> None:
    assert load(GOOD, [f"data.chat_template={json.dumps(escape_variables('x' + text))}"]).data.chat_template == "x" + text


def test_long_values_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "a" * LONGEST)
    lines = problems(GOOD.replace("some/model", f'"{"${X}" * 100}"'))
    assert any("model.path: " in line and "128 KiB" in line for line in lines)
    assert all(len(line) < 300 for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HF_TOKEN",
            "WANDB_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "PGPASSWORD",
            "OPENAI_KEY",
            "GH_PAT",
            "db_pass",
        ),
        *("HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "SECRET", "MY_SECRET_1"),
    ],
)
def test_variables_of_secrets_are_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")
    (line,) = problems(GOOD.replace("some/model", f'"${{{name}}}"'))
    assert "hunter2" not in line
    for common in ("HOME", "USER", "PWD", "SCRATCH", "MAX_TOKENS", "PAD_TOKEN", "TOKENIZER", "SLURM_JOB_ID", "HF_HOME", "MONKEY"):
        assert not names_secret(common), "guard"


def test_code_is_read_next_to_the_base() -> None:
    """A function that a base names is in the directory of the base, whoever extends it; an override's next to the last file."""
    prepared = GOOD.replace("- path: pairs.jsonl", "- {path: pairs.jsonl, prepare: clean:rows}")
    write({"parts/base.yaml": prepared, "parts/clean.py": "CODE = 'parts'", "mine.yaml": "extends: parts/base.yaml\n"})
    write({"own.yaml": "extends: mine.yaml\nobjective: {type: function, path: loss.py:loss}\n", "loss.py": "CODE = 'mine'"})
    recipe = load_recipe("own.yaml")
    assert hook_files(recipe) == {"clean.py": b"CODE = 'parts'", "loss.py": b"CODE = 'mine'"}
    write({"clean.py": "CODE = 'other'"})
    overridden = load_recipe("mine.yaml", ["data.train.0.prepare=clean:other"])
    assert hook_files(overridden) == {"clean.py": b"CODE = 'other'"}
    write({"both.yaml": "extends: mine.yaml\ndata: {eval: [{path: e.jsonl, prepare: clean:rows}]}\n"})
    assert_problems(refused("both.yaml"), ["both.yaml:2:40|data.eval.0.prepare|clean.py differs from parts/clean.py|rename"])
    write({"clean.py": "CODE = 'parts'"})
    assert len(hook_files(load_recipe("both.yaml"))) == 1, "guard: copies are allowed"


def test_a_run_is_a_base() -> None:
    """Its directory stands for its recipe, which belongs to that directory; a later file may set another."""
    write({"run/recipe.yaml": dump_recipe(load(GOOD)), "again.yaml": "extends: run\nrun: {output_dir: runs/again}\n"})
    assert_problems(refused("again.yaml"), ["again.yaml:1:10|extends|run is a directory"])
    write({f"run/{MARKER}": "{}"})
    here = Path.cwd()
    assert load_recipe("run").run.output_dir == load_recipe(here / "run/recipe.yaml").run.output_dir == str(here / "run")
    assert load_recipe("again.yaml").run.output_dir == "runs/again"
    assert load_recipe(["run", "again.yaml"]).run.output_dir == "runs/again"
    assert load_recipe("run", ["run.output_dir=x"]).run.output_dir == "x"
    Path("run").rename("{moved}")
    assert load_recipe("{moved}").run.output_dir == str(here / "{moved}")


def test_the_resolved_recipe_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR", "3e-6")
    write(
        {"base.yaml": GOOD.replace("1e-5", "${LR}"), "mine.yaml": CHILD + 'run: {output_dir: "runs/{run.name}-{optimizer.lr}"}\n'}
    )
    recipe = load_recipe("mine.yaml")
    assert recipe.run.output_dir == "runs/demo-3e-6"
    text = dump_recipe(recipe)
    monkeypatch.delenv("LR")
    write({"alone/copy.yaml": text})
    assert load_recipe("alone/copy.yaml") == recipe
    assert not any(word in text for word in ("extends", "${", "{run"))


def split(draw: st.DataObject, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two recipes that are `data` when the second is merged over the first; what the first says of common keys is nonsense."""
    base: dict[str, Any] = {}
    part: dict[str, Any] = {}
    for section, values in data.items():
        if not isinstance(values, dict) or not values:
            part[section] = values
            continue
        for key, value in values.items():
            # The kind of a section is that of the base: another kind would replace it.
            side = "base" if (section, key) in KIND_KEYS else draw.draw(st.sampled_from(["base", "part", "both"]))
            if side != "part":
                base.setdefault(section, {})[key] = value if side == "base" else draw.draw(st.sampled_from([None, 7, "x", [1]]))
            if side != "base":
                part.setdefault(section, {})[key] = value
    return base, part


KIND_KEYS = {("model", "path"), ("model", "scratch"), ("objective", "type")}


@settings(max_examples=EXAMPLES, deadline=None)
@given(draw=st.data())
def test_merging_equals_writing_one_file(draw: st.DataObject) -> None:
    """However the keys of a recipe are spread over a base and a file, on the command line or by `extends`."""
    data = complete(draw.draw(st.sampled_from(["pair", *KINDS])), draw.draw(st.sampled_from(["pretrained", "scratch"])))
    base, part = split(draw, data)
    write({"base.yaml": write_yaml(base), "part.yaml": write_yaml(part), "whole.yaml": write_yaml(data)})
    write({"mine.yaml": write_yaml({"extends": "base.yaml", **part})})
    whole = load_recipe("whole.yaml")
    assert load_recipe(["base.yaml", "part.yaml"]) == whole
    assert load_recipe("mine.yaml") == whole


def test_editors_know_extends() -> None:
    """In the JSON Schema, a file that extends another one needs no key itself; a whole recipe does."""
    document = json.loads(json_schema())
    assert next(iter(document["properties"])) == "extends"
    assert "extends" not in Recipe.model_fields
    assert document["if"] == {"required": ["extends"]}
    whole = document["else"]
    assert whole["required"] == ["run", "data", "model", "optimizer"]
    assert whole["properties"]["optimizer"]["required"] == ["lr"]
    assert not any(
        "required" in document["$defs"][name] for name in ("Run", "Data", "Optimizer", "PretrainedModel", "Architecture")
    )
