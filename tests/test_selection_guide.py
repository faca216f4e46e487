"""docs/SELECTION.md: its source and its function do what it says."""

import re
from pathlib import Path

from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import prepared
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.recipe.load import load_recipe
from tests.helpers import byte_bpe, write_jsonl
from tests.runs import ROOT

GUIDE = (ROOT / "docs/SELECTION.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert match is not None
    return match[1]


def test_guide_source_and_function_work(tmp_path: Path) -> None:
    rows = [
        {
            "post": f"Question {number}?",
            "post_id": number,
            "status": "tie" if number % 10 == 9 else "won",
            "meta": {"language": "fr" if number % 5 == 3 else "en"},
            "answers": [
                {"text": f"Answer {place} to {number}.", "score": score} for place, score in enumerate((1, 9, 2, 8, 3, 1, 1, 1))
            ],
        }
        for number in range(60)
    ]
    write_jsonl(tmp_path / "shp.jsonl", rows)
    (tmp_path / "mine.py").write_text(block("python"))
    source = "".join(f"    {line}\n" for line in block("yaml").replace("shp.jsonl", str(tmp_path / "shp.jsonl")).splitlines())
    (tmp_path / "recipe.yaml").write_text(
        f"run: {{name: guide, output_dir: run}}\ndata:\n  chat_template: simple_chat\n  cache_dir: {tmp_path}/cache\n  train:\n{source}"
        "model: {path: none}\noptimizer: {lr: 1.0e-5}\n"
    )
    made = prepare(load_recipe(tmp_path / "recipe.yaml").data, prepared(byte_bpe(), "simple_chat"))
    train, held_out = made.train.waterfall.sources["shp"], made.eval.waterfall.sources["shp"]
    assert train.read + held_out.read == 60 * 7, "a row for each pair"
    assert set(train.dropped) == {"filtered", "not_drawn", "capped"}
    ids = [row_id for row_id in [*made.train.ids, *made.eval.ids] if "+" not in row_id]
    posts = {row_id.rpartition(":")[2].partition(".")[0] for row_id in ids}
    assert len(ids) == 5 * len(posts), "five of each post"
    assert train.added.keys() == {"other_prompts", "repeated"}
    assert not held_out.added
    assert 10 < len(posts) < 36
    assert {rows[int(post)]["status"] for post in posts} == {"won"}


def test_guide_lists_intentional_drops() -> None:
    named = set(re.findall(r"\| `(\w+)` \|\n", GUIDE))
    assert named <= set(INTENTIONAL_DROPS)
    assert len(named) == 7
