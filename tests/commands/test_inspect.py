"""`inspect`: the right rows are selected, and no text of the data controls the terminal."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rmtrain.command_line.options import CommandResult, InspectOptions
from rmtrain.commands.inspect import inspect
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Recipe
from rmtrain.report.console import json_text
from tests.report.render import console, written
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)
EVIL = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eback\u202c \u2066x\u2069 \u200b end"
BAD: list[Any] = [
    {"prompt": "q", "chosen": "same", "rejected": "same"},
    {"prompt": "q", "chosen": "  ", "rejected": "b"},
    {"prompt": "", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": None, "rejected": "b"},
    {"prompt": "q", "chosen": 3, "rejected": "b"},
    {"prompt": "q", "rejected": "b"},
    {"prompt": "q", "chosen": "q a", "rejected": "q b"},
    {"prompt": "q", "chosen": [{"role": "alien", "content": EVIL}], "rejected": "b"},
    {"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
    {"prompt": "q", "chosen": "word " * 300 + "Needle", "rejected": "b " * 300},
    {"prompt": "q", "chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]
BROKEN = '{"prompt": oops \x9b}'


def shown(result: CommandResult, width: int = 100, color: bool = False) -> str:
    """The printed text without the control sequences of styles; nothing in it may move a cursor or be too wide."""
    target = console(width, color)
    target.print(result.report, crop=False)
    text = "\n".join(Text.from_ansi(line).plain.rstrip() for line in written(target).split("\n"))
    assert all(character.isprintable() for character in text if character != "\n")
    assert not color or max(cell_len(line) for line in text.split("\n")) <= width
    return text


def look(recipe: Recipe, **options: Any) -> dict[str, Any]:
    """The document of a view, after the view was drawn in narrow and wide terminals and pipes."""
    result = inspect(recipe, QUIET, InspectOptions(**options))
    for width in (60, 160):
        for color in (False, True):
            assert shown(result, width, color)
    document = json.loads(json_text(result.document))
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two sources of good rows, the second with a dangerous one, and a third source of which many rows are dropped."""
    folder = tmp_path_factory.mktemp("inspect")
    one = write_rows(folder / "one.jsonl", planted_rows(40, seed=1))
    two = write_rows(folder / "two.jsonl", [*planted_rows(9, seed=3), {"prompt": "p", "chosen": EVIL, "rejected": f"no {EVIL}"}])
    bad = write_rows(folder / "bad.jsonl", [*planted_rows(3, seed=4), *BAD])
    with bad.open("a", encoding="utf-8") as file:
        file.write(BROKEN + "\n")
    sources = [{"path": str(path)} for path in (one, two, bad)]
    return tiny_recipe(folder, data={"train": sources, "max_drop_fraction": 0.9})


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> TokenizedData:
    return prepare(recipe.data, load_tokenizer(recipe.model, recipe.data)).train


def ids(document: dict[str, Any]) -> list[str]:
    return [row["id"] for row in document["rows"]]


def test_the_first_row_is_the_default(recipe: Recipe) -> None:
    assert look(recipe)["id"] == "one:0"
    assert look(recipe, source="two")["id"] == "two:0"
    assert look(recipe, source="two", row="3")["row"] == 43
    assert look(recipe, source="two", row="two:3")["row"] == 43
    assert look(recipe, split="eval", row="2")["id"] == "test:2"
    assert ids(look(recipe, limit=3, source="bad")) == ["bad:0", "bad:1", "bad:2"]


def test_first_difference_of_responses(recipe: Recipe) -> None:
    document = look(recipe, row="5", ids=True, side_by_side=True)
    chosen, rejected = document["responses"]
    first = document["first_difference"]
    assert chosen["ids"][:first] == rejected["ids"][:first]
    assert chosen["ids"][first] != rejected["ids"][first]
    assert document["prompt"] + chosen["own_text"] == chosen["text"]
    assert (document["ranking"], document["compared"]) == ([0, 1], [0, 1])


def test_unknown_rows_and_sources_are_refused(recipe: Recipe) -> None:
    """A row that was not kept or is of another source is refused, with the valid numbers or an example of an id."""
    with pytest.raises(DataError, match=r"^--row 10: two in train\b.*\b10\b.*\b0 to 9$"):
        look(recipe, source="two", row="10")
    with pytest.raises(DataError, match=r"^--row one:3: .*two in train\b.*\btwo:0$"):
        look(recipe, source="two", row="one:3")
    with pytest.raises(DataError, match=r"^--row bad:3: .*\bidentical\b"):
        look(recipe, row="bad:3")
    with pytest.raises(RecipeError, match=r"^--source tree: train\b.*: one, two, bad$"):
        look(recipe, source="tree", find="x")
    with pytest.raises(RecipeError, match=r"^--source one: eval\b.*: test$"):
        look(recipe, source="one", split="eval")


def test_find_stops_at_its_limit(recipe: Recipe) -> None:
    """A search reads no further than its limit, and reports the number of rows searched."""
    document = look(recipe, find="DESCRIBE THE", limit=2)
    assert ids(document) == ["one:0", "one:1"]
    assert (document["searched"], document["kept"], document["find"]) == (2, 53, "DESCRIBE THE")
    assert {row["found"]["in"] for row in document["rows"]} == {"prompt"}
    text = shown(inspect(recipe, QUIET, InspectOptions(find="DESCRIBE THE", limit=2)))
    assert re.match(r"2 with 'DESCRIBE THE'; searched 2 of 53 kept rows of train: .*\b2\n", text)
    nowhere = inspect(recipe, QUIET, InspectOptions(find="nowhere", source="two"))
    assert re.fullmatch(r"0 with 'nowhere'; searched 10 of 10 kept rows of two: .*\n", shown(nowhere))
    assert nowhere.document["rows"] == []


def test_find_searches_the_whole_decoded_text(recipe: Recipe) -> None:
    """A match may include special tokens, and may be part of both the prompt and a response."""
    row = look(recipe, row="one:7")
    prompt, (_, rejected) = row["prompt"], row["responses"]
    across = rejected["text"][8 : len(prompt) + 9]
    (found,) = look(recipe, find=across.swapcase())["rows"]
    assert found["id"] == "one:7"
    assert found["found"]["in"] == "prompt and rejected"
    place = slice(found["found"]["begin"], found["found"]["end"])
    assert found["responses"][found["found"]["response"]]["text"][place] == across
    (found,) = look(recipe, find=rejected["own_text"][-20:], limit=1)["rows"]
    assert found["found"]["in"] in ("chosen", "rejected")
    assert "<|endoftext|>" in rejected["own_text"][-20:], "guard: a special token was searched for"
    assert ids(look(recipe, find="\u202eback")) == ["two:9"]


def test_longest_rows_come_first(recipe: Recipe, data: TokenizedData) -> None:
    document = look(recipe, longest=True, limit=5)
    lengths = [max(response["length"] for response in row["responses"]) for row in document["rows"]]
    assert lengths == sorted(data.longest.tolist(), reverse=True)[:5]
    assert lengths[0] > lengths[-1], "guard: they differ"
    members = [number for number, source in enumerate(data.sources) if source == "one"]
    with_text = look(recipe, longest=True, find="is bright", source="one", limit=40)
    lengths = [max(response["length"] for response in row["responses"]) for row in with_text["rows"]]
    assert lengths == sorted(lengths, reverse=True)
    assert 1 < len(lengths) < len(members), "guard: some have the text"


def test_random_order_repeats_by_its_seed(recipe: Recipe) -> None:
    first = look(recipe, random=True, limit=6)
    assert look(recipe, random=True, limit=6, seed=first["seed"]) == first
    assert ids(look(recipe, random=True, limit=6, seed=first["seed"] + 1)) != ids(first)
    assert len(set(ids(first))) == 6
    assert f"--seed {first['seed']}" in shown(inspect(recipe, QUIET, InspectOptions(random=True, seed=first["seed"])))
    assert {row["source"] for row in look(recipe, random=True, source="two", limit=10, seed=1)["rows"]} == {"two"}
    assert look(recipe, random=True)["seed"] != first["seed"], "a new seed each time"


def test_dropped_rows_are_shown_for_every_reason(recipe: Recipe) -> None:
    everything = look(recipe, dropped="all", limit=99)
    assert everything["count"] == len(everything["rows"]) == len(BAD) + 1
    assert everything["reasons"] == Counter(row["reason"] for row in everything["rows"])
    assert len(everything["reasons"]) >= 9, "guard: many kinds of faults"
    for reason, count in everything["reasons"].items():
        document = look(recipe, dropped=reason)
        assert len(document["rows"]) == min(count, 3)
        for row in document["rows"]:
            number = int(row["id"].split(":")[1]) - 3
            assert row["row"] == (BAD[number] if number < len(BAD) else BROKEN)
            assert row["detail"]
            text = shown(inspect(recipe, QUIET, InspectOptions(dropped=reason)), width=160)
            assert row["detail"].split("\n")[0][:40] in text


def test_dropped_rows_by_text_order_and_source(recipe: Recipe) -> None:
    assert ids(look(recipe, dropped="all", find="NEEDLE")) == ["bad:12"]
    assert ids(look(recipe, dropped="all", find="\u202e")) == ["bad:10"]
    first = look(recipe, dropped="all", random=True, limit=5)
    assert look(recipe, dropped="all", random=True, limit=5, seed=first["seed"]) == first
    with_text = look(recipe, dropped="all", random=True, find="b", limit=4, seed=1)
    assert len(with_text["rows"]) == 4
    assert ids(with_text) != sorted(ids(with_text)), "guard: shuffled"
    empty = inspect(recipe, QUIET, InspectOptions(dropped="identical", source="one"))
    assert len(shown(empty).splitlines()) == 1
    assert (empty.document["count"], empty.document["rows"]) == (0, [])


def test_unknown_reasons_list_the_valid_ones(recipe: Recipe) -> None:
    with pytest.raises(RecipeError) as error:
        inspect(recipe, QUIET, InspectOptions(dropped="ugly"))
    (line,) = error.value.problems
    assert line.startswith("--dropped ugly:")
    for reason, count in look(recipe, dropped="all")["reasons"].items():
        assert f"{reason} ({count})" in line


def test_dropped_rows_of_refused_data(recipe: Recipe) -> None:
    """Dropped rows can be inspected where there are too many of them to train."""
    strict = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_drop_fraction": 0.05})})
    with pytest.raises(DataError, match=r"^bad: 12 of 15 "):
        inspect(strict, QUIET)
    assert look(strict, dropped="identical")["rows"][0]["id"] == "bad:3"
    none_left = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": 8})})
    with pytest.raises(DataError, match=r"^one: .*\b40\b"):
        inspect(none_left, QUIET)
    assert look(none_left, dropped="too_long", source="one", limit=2)["count"] == 40


def test_best_and_worst_of_many_responses(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": f"answer {best}", "rejected": f"answer {worst}"} for best, worst in ((0, 1), (1, 2), (2, 3))
    ]
    source = {"path": str(write_rows(tmp_path / "many.jsonl", rows)), "group_by_prompt": True}
    recipe = tiny_recipe(tmp_path, data={"train": [source], "max_drop_fraction": 1.0}, batching={"max_tokens": 1024})
    document = look(recipe)
    assert len(document["responses"]) == 4
    named = [response["own_text"].split("<")[0].strip()[-1] for response in document["responses"]]
    assert [named[number] for number in document["compared"]] == ["0", "3"]
    text = shown(inspect(recipe, QUIET))
    assert len(re.findall(r"^[23] of 4 ", text, re.MULTILINE)) == 2


def test_search_in_real_rows(shared_data: Path, tmp_path: Path) -> None:
    source = {"path": str(shared_data / "hh_harmless.jsonl.gz"), "messages": {"transcript": "hh"}, "limit": 200}
    data = {"train": [source], "eval": [], "max_length": 1024, "max_drop_fraction": 1.0, "chat_template": "simple_chat"}
    model = {"scratch": {"architecture": "llama", "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 1024}}
    recipe = tiny_recipe(tmp_path, data=data, model=model)
    found = look(recipe, find="you", limit=2, longest=True)
    assert len(found["rows"]) == 2
