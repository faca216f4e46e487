"""Trap 7: a setting that nothing reads does nothing, and nobody notices."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from rich.console import Console

from rmtrain.batching.layout import lay_out
from rmtrain.commands.evaluate import evaluate
from rmtrain.commands.preprocess import preprocess
from rmtrain.commands.train import train
from rmtrain.data.comparison import hash_text, prompt_hash
from rmtrain.data.rows.formats import adapt
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.tokenizer import open_tokenizer
from rmtrain.errors import DataError, RmtrainError
from rmtrain.model.build import build_reward_model
from rmtrain.model.hub import push
from rmtrain.objective import compute_objective
from rmtrain.recipe import schema
from rmtrain.recipe.load import evaluation_recipe, load_recipe
from rmtrain.recipe.section import Section
from tests.comparisons import tokenized
from tests.runs import planted_rows, styled_rows, tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Every (section, key) that is read as an attribute while the test runs."""
    seen: set[tuple[str, str]] = set()
    original = Section.__getattribute__

    def reading(self: Section, name: str) -> Any:
        if name in type(self).model_fields:
            seen.update((base.__name__, name) for base in type(self).__mro__ if name in getattr(base, "__annotations__", {}))
        return original(self, name)

    monkeypatch.setattr(Section, "__getattribute__", reading)
    return seen


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    """Every section class of the schema."""
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def is_kind(annotation: Any) -> bool:
    """Whether a key can have one value only, such as `format: ab`."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def read_other_formats(folder: Path) -> None:
    """A row through every kind of label, and of responses."""
    row = {"prompt": "q", "x": "one", "y": "two", "l": 1, "m": 0, "r": [{"t": "one", "s": 1}, {"t": "two", "s": 2}]}
    file = str(write_rows(folder / "formats.jsonl", [row, row | {"x": "three", "l": 2}]))
    labels: list[dict[str, Any]] = [
        {"by": "value", "column": "l", "values": {"1": "a", "2": "tie"}},
        {"by": "index", "column": "l", "first": 1},
        {"by": "one_hot", "a": "m", "b": "n", "tie": "o"},
        {"by": "sign", "column": "l", "positive": "b"},
        {"by": "scores", "a": "l", "b": "m"},
        {"by": "votes", "a": "l", "b": "m", "soft": True},
        {"by": "probability", "column": "m"},
    ]
    sources: list[schema.Source] = [
        schema.AbSource.model_validate({"path": file, "format": "ab", "a": "x", "b": "y", "label": label}) for label in labels
    ]
    sources += [
        schema.RankedSource(path=file, format="ranked", responses="r", response="t", score="s"),
        schema.RankedSource(path=file, format="ranked", group_by="prompt", response="x", score="l"),
        schema.ScoredSource(path=file, format="scored", responses="r", response="t", target="s"),
        schema.ScoredSource(path=file, format="scored", response="x", target="l", values={"1": 1.0, "2": 0.0}),
        schema.PairSource.model_validate(
            {
                "path": file,
                "chosen": "x",
                "rejected": "y",
                "filter": [{"column": "l", "at_least": 0}],
                "cap": {"by": "l", "rows": 1},
                "fold": {"number": 1, "of": 2},
            }
        ),
    ]
    pair = schema.PairSource(path=file, chosen="x", rejected="y")
    suspects = [{"id": "formats:0", "source": "formats", "prompt": hash_text(prompt_hash(adapt(row, "formats:0", pair)))}]
    listed = {"file": str(write_rows(folder / "suspects.jsonl", suspects)), "labels": "flip"}
    sources.append(schema.PairSource.model_validate({"path": file, "chosen": "x", "rejected": "y", "suspects": listed}))
    for source in sources:
        with suppress(DataError):  # there is no column n
            list(load_comparisons(source))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_reload")
def test_trap_07_every_key_is_read(tmp_path: Path, reads: set[tuple[str, str]]) -> None:
    """Every key of the schema is read by a run."""
    source = {"path": str(tmp_path / "train.jsonl"), "holdout": 0.2, "augment": {"other_prompts": 0.5}}
    styled = str(write_rows(tmp_path / "rm_bench.jsonl", styled_rows(5)))
    prompts = [{"name": "rm_bench", "path": styled}]
    recipe = tiny_recipe(
        tmp_path,
        lora={"rank": 2},
        data={**tiny_recipe(tmp_path).data.model_dump(), "train": [source], "benchmarks": prompts},
        tracking={"to": ["tensorboard"]},
        evaluation={
            "every": 3,
            "gates": {"accuracy": 0.0},
            "early_stopping": {"metric": "loss", "patience": 9},
            "benchmarks": [{"name": "rm_bench", "path": styled, "every": 3}],
        },
    )
    train(recipe, QUIET)
    without_recipe = evaluation_recipe(
        str(tmp_path / "test.jsonl"), [f"data.cache_dir={tmp_path / 'cache'}", "data.max_length=96"]
    )
    evaluate(str(tmp_path / "run/model"), without_recipe, QUIET)
    tokens = [{"chosen_ids": [5, 9, 0], "rejected_ids": [6, 8, 0], "m": None}] * 3
    write_rows(tmp_path / "tokens.jsonl", tokens)
    source = {"path": str(tmp_path / "tokens.jsonl"), "format": "tokenized", "margin": "m", "margin_default": 0.0}
    data = {"train": [source], "eval": [], "chat_template": "simple_chat", "cache_dir": str(tmp_path / "cache"), "max_length": 96}
    preprocess(tiny_recipe(tmp_path, data={**data, "eval": ()}), QUIET)
    tiny_recipe(tmp_path, model={**recipe.model.model_dump(), "dtype": "bfloat16"}, training={"allow_bfloat16_weights": True})
    rows = planted_rows(3, seed=9)
    messages = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}], "s": "Be brief.", "margin": None} for row in rows]
    write_rows(tmp_path / "messages.jsonl", messages)
    source = {"path": str(tmp_path / "messages.jsonl"), "system": "s", "margin": "margin", "margin_default": 0.0}
    upper = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    rewritten = {**data, "train": [source], "eval": (), "chat_template": upper, "allow_rewritten": True}
    preprocess(tiny_recipe(tmp_path, data=rewritten), QUIET)
    read_other_formats(tmp_path)
    with pytest.raises(RmtrainError):
        push(tmp_path / "run/model", recipe.hub.model_copy(update={"id": "nobody/nothing"}), "nothing")
    batch = lay_out([tokenized("s:0", [5, 6, 0], [5, 7, 0])], pad_token_id=1)
    compute_objective(schema.PlackettLuce(type="plackett_luce"), torch.zeros(2), batch)
    regression = schema.Regression(type="regression", mean=0.0, std=1.0, huber=1.0)
    compute_objective(schema.BySource(type="by_source", sources={"rated": regression}), torch.zeros(2), batch)
    (tmp_path / "my_loss.py").write_text("def loss(rewards, labels):\n    return rewards.sum()\n", encoding="utf-8")
    load_recipe(write_recipe(tmp_path, tiny_recipe(tmp_path, objective={"type": "function", "path": "my_loss.py:loss"})))
    pretrained = schema.PretrainedModel(path=str(tmp_path / "run/model"))
    build_reward_model(pretrained, None, open_tokenizer(pretrained.path), seed=1)

    declared = {(s.__name__, name) for s in sections() for name in s.__annotations__ if name in s.model_fields}
    # the kind of a section, a literal with one value, is read by pydantic
    declared -= {(s.__name__, name) for s in sections() for name, key in s.model_fields.items() if is_kind(key.annotation)}
    unread = sorted(declared - reads)
    assert unread == [], f"keys that nothing reads: {unread}"
    assert len(declared) > 80, "guard: the schema was walked"
