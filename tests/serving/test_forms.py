"""Forms of requests: the same reward in each of them, that of the scorer; and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.text.renderer import render
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.serving.forms import Forms
from tests.exports import tiny_export

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


@pytest.fixture
def forms(scorer: RewardScorer) -> Forms:
    return Forms(scorer, "tiny")


def ask(forms: Forms, form: str, document: Any) -> Any:
    """Read a request, score its rows, and return the answer."""
    asked = getattr(forms, form)(document if isinstance(document, bytes) else json.dumps(document).encode())
    return asked.answer(forms.scorer.rewards(asked.rows))


def test_lines_of_score_are_answered(forms: Forms) -> None:
    scorer = forms.scorer
    assert ask(forms, "score", {"messages": CHAT}) == {"reward": scorer.score([CHAT])[0]}
    assert ask(forms, "score", {"prompt": "a", "response": "b", "label": 1}) == {"reward": scorer(["a"], ["b"])[0]}
    replies = ["b", "c", "", "b"]
    answer = ask(forms, "score", {"prompt": "a", "responses": replies})
    assert answer == {"rewards": scorer(["a"] * 4, replies)}
    assert len(set(answer["rewards"])) == 3, "guard: rewards differ"


def test_forms_agree_on_a_conversation(forms: Forms) -> None:
    """Messages, and their text as the template renders it, have the same reward in each form."""
    (reward,), text = forms.scorer.score([CHAT]), render(CHAT, forms.scorer.tokenizer)
    for item in (CHAT, text):
        assert ask(forms, "get_reward", {"query": [item], "prompts": ["x"], "labels": [None]})["rewards"] == [reward]
    half = len(text) // 2
    assert ask(forms, "get_reward", {"prompt": text[:half], "response": text[half:], "label": "4"}) == reward
    assert ask(forms, "get_reward", {"prompt": CHAT[:1], "response": CHAT[1]["content"], "label": None}) == reward
    for document in ({"input": text}, {"messages": CHAT}, {"input": [text]}):
        assert ask(forms, "classify", {"model": "tiny", "use_activation": False, **document})["data"][0]["probs"] == [reward]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_special_tokens_of_texts_appear_once(architecture: str, tmp_path: Path) -> None:
    """A policy's text has a begin and an end or lacks them; a reply may end with a part of the end token."""
    scorer = RewardScorer(tiny_export(tmp_path / "model", architecture))
    forms = Forms(scorer, "tiny")
    text = render(CHAT, scorer.tokenizer)
    end = str(scorer.tokenizer.eos_token)
    expected = [*scorer.score([CHAT])] * 4
    given = [text, text.removesuffix(end), text + "\n", text.removesuffix(end) + end]
    assert ask(forms, "get_reward", {"query": given})["rewards"] == pytest.approx(expected, abs=1e-6)
    cut = [*CHAT[:1], {"role": "assistant", "content": "It is " + end[:1]}]
    (reward,) = ask(forms, "get_reward", {"query": [render(cut, scorer.tokenizer).removesuffix(end)]})["rewards"]
    assert reward == pytest.approx(scorer.score([cut])[0], abs=1e-6)
    assert abs(reward - expected[0]) > 1e-3, "guard: the reward depends on the text"


def test_begin_token_is_added_or_kept(tmp_path: Path) -> None:
    """verl removes the begin token of a rendered text, because vLLM adds it."""
    scorer = RewardScorer(tiny_export(tmp_path / "model"))
    scorer.tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    scorer.tokenizer.chat_template = "{{ bos_token }}" + str(scorer.tokenizer.chat_template)
    forms = Forms(scorer, "tiny")
    text = render(CHAT, scorer.tokenizer)
    rows = [forms.classify(json.dumps({"input": given}).encode()).rows[0] for given in (text, text.removeprefix("<|endoftext|>"))]
    assert [list(row.sequences[0]) for row in rows] == [list(rows[0].sequences[0])] * 2
    assert list(rows[0].sequences[0]).count(scorer.tokenizer.bos_token_id) == 2, "guard: begin and end"


def test_classify_answers_in_vllms_form(forms: Forms) -> None:
    text = render(CHAT, forms.scorer.tokenizer)
    answer = ask(forms, "classify", {"model": "any", "input": [text, text + "x"]})
    assert answer["id"].startswith("classify-")
    assert (answer["object"], answer["model"], isinstance(answer["created"], int)) == ("list", "tiny", True)
    assert [set(item) for item in answer["data"]] == [{"index", "label", "probs", "num_classes"}] * 2
    assert [(item["index"], item["num_classes"], len(item["probs"])) for item in answer["data"]] == [(0, 1, 1), (1, 1, 1)]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 20
    assert answer["data"][0]["label"] == "reward", "as config.json names it"


def test_long_conversations_are_refused_or_cut(scorer: RewardScorer, tmp_path: Path) -> None:
    long = {"prompt": "word " * 400, "response": "b"}
    with pytest.raises(DataError, match=r"^request: .*256.*--cut"):
        Forms(scorer, "tiny").score(json.dumps(long).encode())
    cutting = Forms(RewardScorer(tiny_export(tmp_path / "model"), overlong="cut"), "tiny")
    assert ask(cutting, "score", long)["truncated"] is True
    assert len(ask(cutting, "get_reward", {"query": ["word " * 400]})["rewards"]) == 1


@pytest.mark.parametrize(
    ("form", "document", "place"),
    [
        ("score", b"", "request:1: "),
        ("score", b"{oops", "request:2: "),
        ("score", b"\xff", "request: "),
        ("score", b"[" * 100_000, "request"),
        ("score", b'{"a": 1} {"b": 2}', "request:9: "),
        ("score", {"prompt": "a"}, "request: "),
        ("score", {"messages": CHAT[:1]}, "request: messages: "),
        ("score", {"prompt": "a", "responses": []}, "request: responses: "),
        ("score", {"prompt": "a", "responses": ["b", 3]}, "request: responses[1]: "),
        ("score", {"prompt": "a" * 2**20, "responses": ["b"] * 100}, "request: 100 "),
        (
            "score",
            {"prompt": "a", "response": "b", "chat_template_kwargs": {"messages": 1}},
            "request: chat_template_kwargs.messages: ",
        ),
        ("get_reward", {"queries": ["a"]}, "request: "),
        ("get_reward", {"query": "a"}, "request: query is text"),
        ("get_reward", {"query": ["a", 5]}, "request: query[1]: "),
        ("get_reward", {"query": ["a", CHAT[:1]]}, "request: query[1]: "),
        ("get_reward", {"prompt": "a", "response": 3}, "request: "),
        ("get_reward", {"prompt": 3, "response": "a"}, "request: prompt "),
        ("classify", {"model": "a"}, "request: input "),
        ("classify", {"input": [[1, 2]]}, "request: input[0] "),
        ("classify", {"messages": CHAT[:1]}, "request: messages: "),
    ],
)
def test_wrong_requests_name_their_place(forms: Forms, form: str, document: Any, place: str) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(DataError) as refused:
        getattr(forms, form)(body)
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(place)
