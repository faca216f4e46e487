"""The keys of a source: what each format needs, what cannot be combined, which rows are used, and the file of `prepare`."""

import sys
from pathlib import Path

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import MAX_HOOK_BYTES, dump_recipe, hook_files, load_recipe, parse_recipe, read_hook
from rmtrain.recipe.schema import PairSource
from rmtrain.recipe.sources import TESTS, Condition
from tests.recipe.recipes import assert_problems, load, problems, with_source

CODE = "def rows(row):\n    return row\n"
RANKED = "path: x, format: ranked, score: s"

# Keys of a source, the part of them that the problem points to (first occurrence), and the key and words of the problem.
BROKEN = [
    ("path: x, chosen: c, rejected: c", "c}", 'rejected|"c"'),
    ("path: x, prompt: [question, auto]", "[question", 'prompt|"auto"|prompt: auto'),
    ("path: x, messages: {json: true}", "json", "messages.json|unknown|mean decode_json?"),
    (RANKED, "path", "responses|missing|group_by"),
    (f"{RANKED}, responses: r, group_by: g, response: t", "g, resp", "group_by|responses"),
    (f"{RANKED}, group_by: prompt", "prompt", "response|missing|group_by"),
    (f"{RANKED}, responses: r, policy: best_worst, max_pairs: 3", "3", "max_pairs|best_worst|all"),
    (
        f"{RANKED}, responses: r, policy: best",
        "best",
        "policy|'all', 'best_vs_rest', 'best_worst' or 'adjacent'|got \"best\"",
    ),
    (f"{RANKED}, responses: r, min_gap: 0", "0", "min_gap|> 0|got 0"),
    ("path: x, format: ranked, responses: r, score: {}", "{}", "score|expected|a section"),
    ("path: x, format: ranked, responses: r", "path", "score|missing"),
    ("path: x, format: ranked, responses: r, score: {a: b}", "b}", 'score.a|number|got "b"'),
    ("path: x, data_files: [1]", "1", "data_files.0|string|got 1|quotes"),
    ("path: x, margin: [a, 1]", "1", "margin.1|string|got 1|quotes"),
    ("path: x, lists: true, format: ranked, responses: r, score: s", "lists", "lists|kind ranked|only of pair"),
    ("path: x, filter: [{column: a}]", "{column", f"filter.0|{', '.join(TESTS)}|none"),
    ("path: x, filter: [{column: a, at_least: 1, at_most: 2}]", "2}", "filter.0.at_most|at_least and at_most"),
    ("path: x, filter: [{column: a, is: 1}]", "is:", "filter.0.is|unknown|mean equals?"),
    ("path: x, filter: [{column: a, gte: 1}]", "gte", "filter.0.gte|unknown|mean at_least?"),
    ("path: x, filter: [{column: a, at_least: high}]", "high", 'filter.0.at_least|number|got "high"'),
    ("path: x, filter: [{column: a, equals: [1]}]", "[1]", "filter.0.equals|string|boolean|integer|number|list of 1"),
    ("path: x, filter: [{at_least: 1}]", "{at", "filter.0.column|missing"),
    ("path: x, fraction: 0", "0", "fraction|> 0|got 0"),
    ("path: x, fraction: 1.5", "1.5", "fraction|<= 1|got 1.5|set repeat"),
    ("path: x, weights: 0.5", "weights", "weights|unknown|repeat|fraction"),
    ("path: x, upsample: 2", "upsample", "upsample|unknown|mean repeat?"),
    ("path: x, repeat: 0.5", "0.5", "repeat|>= 1|got 0.5|set fraction"),
    ("path: x, repeat: 0", "0", "repeat|>= 1|got 0"),
    ("path: x, balance: shorter", "shorter", "balance|'longer'|got \"shorter\""),
    ("path: x, fold: {number: 6, of: 5}", "6", "fold.number|at most 5|got 6"),
    ("path: x, fold: {number: 1}", "fold", "fold.of|missing"),
    ("path: x, suspects: {file: s.jsonl, labels: keep}", "keep", "suspects.labels|drop|flip"),
    (
        "path: x, format: ranked, group_by: p, response: r, score: s, suspects: {file: s.jsonl}",
        "{file",
        "suspects|group_by|remove it",
    ),
    ("path: x, augment: {}", "augment", "augment.other_prompts|missing"),
    ("path: x, augment: {other_prompts: 0}", "0}", "augment.other_prompts|> 0|got 0"),
    ("path: x, augment: {other_prompts: 1.5}", "1.5", "augment.other_prompts|<= 1|got 1.5"),
    ("path: x, format: tokenized, augment: {other_prompts: 0.3}", "augment", "augment|kind tokenized|only of pair, ab or ranked"),
    ("path: x, cap: {by: post}", "cap", "cap.rows|missing"),
    ("path: x, dedup: yes", "yes", 'dedup|boolean|got "yes"|true'),
    ("path: x, streaming: true", "true", "streaming|limit"),
    ("path: x, template_columns: {tools: t}", "t}", "template_columns.tools|tools: COLUMN"),
    ("path: x, template_columns: {messages: m}", "m}", "template_columns.messages|of its own"),
    ("path: x, template_columns: {eos_token: e}", "e}", "template_columns.eos_token|of its own"),
    ("path: x, template_columns: {'a b': c}", "c}", "template_columns.a b|letters"),
    ("path: x, template_columns: {docs: ''}", "''", "template_columns.docs|non-empty text"),
    ("path: x, tools_column: t", "tools_column", "tools_column|unknown|mean tools?"),
    ("path: x, prepare: clean", "clean", 'prepare|got "clean"'),
    ("path: x, prepare: '../clean:rows'", "'", 'prepare|got "../clean:rows"'),
    ("path: x, prepare: clean:rows", "clean", "prepare|clean.py|No such file"),
]

RANKING_CONFLICTS = [  # keys that Bradley-Terry allows, and the key that Plackett-Luce refuses
    ("path: x, format: ab, a: l, b: r, label: {by: index, column: w}, margin: m", "margin"),
    ("path: x, format: ab, a: l, b: r, label: {by: sign, column: s, positive: b}, margin_from_label: true", "margin_from_label"),
    ("path: x, format: ab, a: l, b: r, label: {by: index, column: w}, tie: half", "tie"),
    (f"{RANKED}, responses: r, margin_from_score: true", "margin_from_score"),
    (f"{RANKED}, responses: r, policy: adjacent", "policy"),
    (f"{RANKED}, responses: r, max_pairs: 2", "max_pairs"),
    ("path: x, margin: m", "margin"),
]


def column(keys: str, part: str) -> int:
    """Column of a part of the keys in line 4 of the recipe."""
    line = with_source(keys).splitlines()[3]
    return line.index(part, line.index("path")) + 1 if part != "path" else line.index("{") + 1


@pytest.mark.parametrize(("keys", "part", "expected"), BROKEN, ids=[keys for keys, _, _ in BROKEN])
def test_a_wrong_key_is_one_problem_there(keys: str, part: str, expected: str) -> None:
    """A key that is missing has the place of its source."""
    key, *words = expected.split("|")
    place = f"recipe.yaml:4:{column(keys, part)}"
    assert_problems(problems(with_source(keys)), ["|".join([place, f"data.train.0.{key}", *words])])


@pytest.mark.parametrize(("keys", "key"), RANKING_CONFLICTS)
def test_plackett_luce_has_no_margins_and_halves(keys: str, key: str) -> None:
    assert load(with_source(keys)), "guard: it is right for bradley_terry"
    (line,) = problems(with_source(keys, "objective: {type: plackett_luce}\n"))
    assert line.startswith("recipe.yaml:4:")
    assert f"  data.train.0.{key}: plackett_luce" in line


def test_selection_survives_a_dump() -> None:
    keys = (
        "path: pairs.jsonl, filter: [{column: a.b, at_least: 2}, {column: status, is_not: tie}, "
        "{column: lang, one_of: [en, 5, true]}, {column: n, at_most: 0.5}, {column: ok, equals: false}], "
        "fraction: 0.25, cap: {by: post_id, rows: 5}, dedup: true, streaming: true, limit: 9"
    )
    recipe = load(with_source(keys))
    (source,) = recipe.data.train
    criteria = [(condition.column, *next(iter(condition.criteria.items()))) for condition in source.filter]
    assert criteria == [
        ("a.b", "at_least", 2.0),
        ("status", "is_not", "tie"),
        ("lang", "one_of", ("en", 5, True)),
        ("n", "at_most", 0.5),
        ("ok", "equals", False),
    ]
    assert [len(condition.criteria) for condition in source.filter] == [1] * 5
    assert type(source.filter[2].one_of[1]) is int, "guard: values keep their types"
    Path("copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("copy.yaml") == recipe


def test_criteria_of_a_condition() -> None:
    assert Condition(column="a", equals=0).criteria == {"equals": 0}
    assert Condition(column="a").criteria == {}


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("trl-internal-testing/sentiment-trl-style", "sentiment-trl-style"),
        ("data/hh_harmless.jsonl.gz", "hh_harmless"),
        ("a/b/pairs.json", "pairs"),
        ("pairs.v2.parquet", "pairs.v2"),
        ("org/model-v0.2", "model-v0.2"),
        ("some/folder/", "folder"),
        (".", "."),
        ("/", "/"),
    ],
)
def test_title_is_the_tag_or_the_path(path: str, title: str) -> None:
    assert PairSource(path=path).title == title
    assert PairSource(path=path, tag="mine").title == "mine"


def test_the_hook_is_read_but_not_run(tmp_path: Path) -> None:
    Path("clean.py").write_text("raise SystemExit('this must not run')")
    recipe = load_recipe(write(tmp_path, "prepare: clean:rows"))
    (source,) = recipe.data.train
    assert source.hook is not None
    assert (source.hook.name, source.hook.function, source.hook.file) == ("clean:rows", "rows", tmp_path / "clean.py")
    assert hook_files(recipe) == {"clean.py": b"raise SystemExit('this must not run')"}
    Path("clean.py").write_text(CODE)
    assert hook_files(recipe)["clean.py"] != CODE.encode(), "guard: what was read stays"


def test_recipes_with_equal_hooks_are_equal(tmp_path: Path) -> None:
    """Wherever the file is stored: the copy in a run directory has the same hook."""
    Path("clean.py").write_text(CODE)
    recipe = load_recipe(write(tmp_path, "prepare: clean:rows"))
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(dump_recipe(recipe))
    with pytest.raises(RecipeError) as raised:
        load_recipe("run/recipe.yaml")
    assert raised.value.problems[0].startswith("run/recipe.yaml:")
    assert "  data.train.0.prepare: expected clean.py " in raised.value.problems[0]
    for name, code in hook_files(recipe).items():
        Path("run", name).write_bytes(code)
    assert load_recipe("run/recipe.yaml") == recipe
    Path("run/clean.py").write_text(CODE + "# other")
    assert load_recipe("run/recipe.yaml") != recipe


def test_hooks_come_from_the_recipe_directory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        Path(name).mkdir()
    Path("here/clean.py").write_text(CODE)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here"), *sys.path])
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(tmp_path / "there", "prepare: clean:rows"))
    assert "prepare: expected clean.py " in str(raised.value)
    write(tmp_path / "there", "dedup: true")
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "there/recipe.yaml", ["data.train.0.prepare=clean:rows"])
    assert str(raised.value).startswith("override data.train.0.prepare=clean:rows  data.train.0.prepare: expected clean.py ")
    assert load_recipe(write(tmp_path / "here", "prepare: clean:rows")).data.train[0].hook is not None, "guard"


def test_a_recipe_without_a_file_has_no_hooks() -> None:
    with pytest.raises(RecipeError) as raised:
        parse_recipe(with_source("path: pairs.jsonl, prepare: clean:rows"), "text")
    assert_problems(raised.value.problems, ["text|data.train.0.prepare|clean.py"])
    assert PairSource(path="pairs.jsonl", prepare="clean:rows").hook is None


def test_unusable_hook_files_are_refused(tmp_path: Path) -> None:
    Path("big.py").write_bytes(b"#" * (MAX_HOOK_BYTES + 1))
    with pytest.raises(ValueError, match=r"big\.py: .*1024 KiB"):
        read_hook("big:rows", tmp_path)
    Path("folder.py").mkdir()
    with pytest.raises(ValueError, match=r"folder\.py: Is a directory"):
        read_hook("folder:rows", tmp_path)


def write(folder: Path, keys: str) -> Path:
    """A recipe in a folder whose source has the given keys."""
    file = folder / "recipe.yaml"
    file.write_text(with_source(f"path: pairs.jsonl, {keys}"))
    return file


def test_template_variables_survive_a_dump() -> None:
    """Values of all JSON types, also when they are set by an override."""
    keys = "path: x, tools: t, template_columns: {documents: a.b}"
    recipe = load(with_source(keys), ["data.chat_template_kwargs={on: false, l: [1, {a: null}]}"])
    (source,) = recipe.data.train
    assert isinstance(source, PairSource)
    assert source.variables == {"tools": "t", "documents": "a.b"}
    assert recipe.data.chat_template_kwargs == {"on": False, "l": [1, {"a": None}]}
    Path("copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("copy.yaml") == recipe
    (line,) = problems(with_source(keys), ["data.chat_template_kwargs={tokenize: true}"])
    assert "data.chat_template_kwargs.tokenize" in line
