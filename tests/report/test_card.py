"""The model card: front matter for the Hub, text for people, and a snippet that runs."""

import ast
import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForSequenceClassification

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.card import model_card
from rmtrain.report.console import escape_invisible
from tests.report.tokenizers import byte_level

FACTS: dict[str, Any] = {
    "name": "rm_sentiment_1b",
    "path": "owner/rm_sentiment_1b",
    "base_model": "EleutherAI/pythia-1b-deduped",
    "adapted": False,
    "datasets": {"hh": "Anthropic/hh-rlhf"},
    "splits": {"hh": "test"},
    "waterfall": {
        "hh": {"read": 100, "dropped": {"too_long": 3}, "gathered": 0, "kept": 97},
        "mine|local": {"read": 10, "dropped": {}, "gathered": 0, "kept": 10},
    },
    "evaluation": summarize(
        [ScoredComparison(str(k), ("hh", "mine|local")[k % 2], (1.0, 0.0 if k % 4 else 2.0), (30, 20), PAIR) for k in range(100)]
    ),
    "recipe": "run:\n  name: rm_sentiment_1b\n",
    "max_length": 1024,
    "add_special_tokens": False,
    "own_code": False,
    "left_padding": True,
    "meanings": ["Only the difference between two responses to the same prompt is meaningful."],
    "rewards": {"responses": 200, "mean": 0.6875, "std": 0.68},
    "versions": {"rmtrain": "0.1.0", "torch": "2.13.0"},
}


def test_hub_reads_front_matter() -> None:
    data = ModelCard(model_card(**FACTS)).data
    assert data.base_model == "EleutherAI/pythia-1b-deduped"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["Anthropic/hh-rlhf"]
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.metrics == ["accuracy"]
    assert data.tags == ["reward-model", "rmtrain", "text-classification"]
    assert [
        (result.dataset_name, result.dataset_type, result.metric_type, result.metric_value) for result in data.eval_results
    ] == [
        ("hh", "Anthropic/hh-rlhf", "accuracy", 0.5),
        ("mine|local", "mine|local", "accuracy", 1.0),
    ]


def test_card_has_waterfall_metrics_and_baseline() -> None:
    card = model_card(**FACTS)
    assert "| hh | 100 | 3 too long | 97 | 97.0 % |" in card
    assert "| all sources | 110 | 3 too long | 107 | 97.3 % |" in card
    assert "| mine\\|local | 50 | 1.0000 | [0.9287, 1.0000] | 0 | 0.3133 | 1.0000 | 1.0000 |" in card
    assert "| source | n | accuracy | 95 % interval | ties | loss | longer wins | half credit |" in card
    assert all(FACTS["evaluation"]["rules"][key] in card for key in ("accuracy", "longer_wins", "loss"))
    assert all(warning in card for warning in FACTS["evaluation"]["warnings"])
    assert FACTS["evaluation"]["warnings"], "guard"
    assert " 1,024 tokens" in card
    assert "rmtrain 0.1.0, torch 2.13.0" in card
    assert "low-rank" not in card
    assert "low-rank" in model_card(**{**FACTS, "adapted": True})


def test_card_counts_added_comparisons() -> None:
    """A share of rows is one of the rows that were read."""
    added = {"read": 100, "dropped": {"too_long": 3, "other_prompt_unfit": 2}, "gathered": 0, "kept": 145}
    waterfall = {**FACTS["waterfall"], "mix": {**added, "added": {"other_prompts": 50}}}
    card = model_card(**{**FACTS, "waterfall": waterfall})
    assert "| source | rows read | dropped | added | comparisons | share of rows used |" in card
    assert "| mix | 100 | 3 too long, 2 other prompt unfit | 50 other prompts | 145 | 97.0 % |" in card


def test_index_has_split_and_interval_of_sources() -> None:
    hh, mine = ModelCard(model_card(**FACTS)).data.eval_results
    assert (hh.dataset_split, mine.dataset_split) == ("test", None)
    assert hh.metric_name == "accuracy, 95 % in [0.3664, 0.6336] of 50"
    assert hh.task_type == "preference_evaluation"


def test_card_says_what_evaluation_shows() -> None:
    """The weakest source is named, as text and not as Markdown."""
    name = "[weak](https://example.com)"
    scored = [ScoredComparison(str(k), "strong", (1.0, 0.0), (), PAIR) for k in range(100)]
    scored += [ScoredComparison(f"w{k}", name, (k % 2, 0.5), (), PAIR) for k in range(60)]
    card = model_card(**{**FACTS, "evaluation": summarize(scored)})
    shows = card[card.index("What it shows:") : card.index("What the numbers mean:")]
    assert "- Weakest on [weak\\](https:" in shows
    assert name not in shows
    assert "What it shows:" not in model_card(**{**FACTS, "evaluation": None})


def test_card_has_spread_calibration_and_length() -> None:
    card = model_card(**FACTS)
    assert re.search(r"^- rewards.*1\.000 ± 0\.000.*0\.500 ± 0\.866", card, re.MULTILINE)
    assert re.search(r"^- calibration error.*: 0\.\d{3}\.", card, re.MULTILINE)
    assert re.search(r"^- length:.* 0\.750 .* – ", card, re.MULTILINE)
    bare = summarize([ScoredComparison("a", "hh", (1.0, 0.0), (), PAIR)])
    assert "- length:" not in model_card(**{**FACTS, "evaluation": bare})


def test_vllm_snippet_passes_token_ids() -> None:
    """vLLM then adds no second begin token."""
    snippets = re.findall(r"```python\n(.*?)```", model_card(**FACTS), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "card", "exec")
    assert '"prompt_token_ids"' in snippets[1]
    assert 'runner="pooling"' in snippets[1]
    assert "add_special_tokens=False" in snippets[1]


def test_card_says_how_to_load_and_pad() -> None:
    """A model with code of its own names its file and needs consent; an architecture that reads the padding on its left is warned about."""
    plain, special = model_card(**FACTS), model_card(**{**FACTS, "own_code": True, "left_padding": False})
    for words in ("modeling_reward.py", "trust_remote_code=True", "on the right"):
        assert words in special
        assert words not in plain
    compile(re.findall(r"```python\n(.*?)```", special, re.DOTALL)[0], "card", "exec")


def test_card_without_waterfall_has_no_table() -> None:
    card = model_card(**{**FACTS, "waterfall": {}})
    assert "rows read" not in card


def test_card_of_scratch_model_without_evaluation() -> None:
    card = model_card(**{**FACTS, "base_model": None, "datasets": {}, "evaluation": None})
    data = ModelCard(card).data
    assert data.base_model is None
    assert data.datasets is None
    assert data.eval_results is None
    assert "| accuracy |" not in card
    assert "None" not in card


def test_recipe_is_whole_without_secrets_and_paths() -> None:
    """Backticks in a recipe do not end its block; home directories and tokens are left out."""
    token = "hf_" + "x" * 34
    recipe = (
        f'data:\n  chat_template: "```{{{{ x }}}}```"\nrun:\n  output_dir: {os.path.expanduser("~")}/models\n  note: {token}\n'
    )
    card = model_card(**{**FACTS, "recipe": recipe})
    block = re.search(r"^(`{4,})yaml\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert block
    assert "```{{ x }}```" in block[2]
    assert "output_dir: …/models" in block[2]
    assert os.path.expanduser("~") not in block[2]
    assert token not in card


def test_snippet_runs_as_printed(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<eos>"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", model_card(**{**FACTS, "path": str(tmp_path)}), re.DOTALL)
    assert snippet
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(snippet[1], names)
    rewards, batch = names["rewards"], names["batch"]
    assert printed.getvalue().startswith("tensor(")
    assert rewards.shape == (2,)
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel(), "guard: one text is padded"
    for text, reward in zip(names["texts"], rewards, strict=True):
        alone = names["model"](**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
        assert alone == pytest.approx(reward.item(), abs=1e-5)


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](http://evil.example)",
    "![x][y]",
    "a|b`c`*d*",
    "_e_ ~~f~~ $g$ &lt;h&gt;",
    "\n# heading\n\n- item",
    "www.evil.example\\",
    "\x1b]52;c;aGFja2Vk\x07\u202e\u2028|",
)
"""Names of sources that Markdown or HTML would read as something else."""


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_markdown(name: str) -> None:
    """A parser of Markdown finds the name itself in its cell, and no element, link or row that it made."""
    markdown_it = pytest.importorskip("markdown_it")
    rows = {name: {"read": 10, "dropped": {}, "gathered": 0, "kept": 10}}
    scored = [ScoredComparison(str(k), (name, "b")[k % 2], (1.0, 0.0), (30, 20), PAIR) for k in range(20)]
    card = model_card(**{**FACTS, "waterfall": rows, "evaluation": summarize(scored)})
    body = card.split("\n---\n", 1)[1]
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    cells = [token for token in parser.parse(body) if token.type == "inline"]
    found = [cell for cell in cells if _text(cell) == " ".join(escape_invisible(name).split())]
    assert len(found) == 2, "the cell of the data, and that of the evaluation"
    assert all({child.type for child in cell.children} <= {"text", "text_special"} for cell in found)
    assert not [token for token in parser.parse(body) if token.type == "html_block"]
    assert ModelCard(card).data.eval_results[0].dataset_name == name, "guard: the front matter has the name itself"


def _text(token: Any) -> str:
    return "".join(child.content for child in token.children)


@pytest.mark.parametrize("path", ["a'b/c", 'a"; import os; "', "a\nprint(1)", "C:\\models\\new", "日本/é\x1b[31m"])
def test_paths_are_literals_of_python(path: str) -> None:
    card = model_card(**{**FACTS, "path": path})
    (code,) = re.findall(r"^path = (.*)$", card, re.MULTILINE)
    assert ast.literal_eval(code) == path
    (called,) = re.findall(r"^llm = LLM\((.*), runner", card, re.MULTILINE)
    assert called == code
