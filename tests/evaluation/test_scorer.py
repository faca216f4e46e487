"""RewardScorer: rewards equal those of transformers alone, whatever shares a prompt or a batch; TRL; and lines to score."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrain import RewardScorer
from rmtrain.data.comparison import Message
from rmtrain.data.rows.readers import Line
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.scorer import format_response, parse_input
from tests.exports import LONGEST, tiny_export
from tests.helpers import SENTENCES
from tests.model.builders import make_base, make_tokenizer


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("scorer") / "model")


def conversation(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def conversations(prompts: int = 4, answers: int = 4) -> list[list[Message]]:
    """Make `answers` answers to each of `prompts` prompts, one prompt after the other."""
    return [
        conversation(f"{number}. {SENTENCES[number]}", f"{answer} {SENTENCES[answer][: 10 + 17 * answer]}")
        for number in range(prompts)
        for answer in range(answers)
    ]


def alone(export: Path, messages: list[list[Message]]) -> list[float]:
    """Score by transformers, one conversation at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    rewards = []
    for conversation in messages:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        with torch.no_grad():
            rewards.append(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item())
    return rewards


@pytest.mark.parametrize(
    ("call", "place", "named"),
    [
        (lambda scorer: scorer.score(conversation("a", "b")), "conversations: ", "one conversation"),
        (lambda scorer: scorer.score("Hello"), "conversations: ", "a text"),
        (lambda scorer: scorer.score(["Hello"]), "conversation 0: ", "a text"),
        (lambda scorer: scorer.score(conversation("a", "b")[1]), "conversations: ", "one message"),
        (lambda scorer: scorer.score([{"messages": conversation("a", "b")}]), "conversation 0: ", "keys messages"),
        (lambda scorer: scorer.score([conversation("a", "b"), "Hello"]), "conversation 1: ", "a text"),
        (lambda scorer: scorer("What?", "That."), "prompts: ", "a text"),
        (lambda scorer: scorer(["What?"], "That."), "completions: ", "a text"),
    ],
)
def test_one_item_in_place_of_a_list_is_named(export: Path, call: Any, place: str, named: str) -> None:
    """A text or a conversation in place of a list is refused; its characters or messages are never scored."""
    with pytest.raises(DataError) as refused:
        call(RewardScorer(export))
    (line,) = refused.value.problems
    assert line.startswith(place)
    assert named in line
    assert "scorer.score([messages])" in line


def test_trap_19_rewards_do_not_depend_on_neighbours(export: Path) -> None:
    """Sharing a prompt, the order, and the size of micro-batches change nothing."""
    rows = conversations()
    expected = alone(export, rows)
    assert np.ptp(expected) > 0.5, "guard: the rewards differ"
    scorer = RewardScorer(str(export))
    assert scorer.score(rows) == pytest.approx(expected, abs=1e-5)
    assert scorer.layout == "shared_prefix"
    assert [scorer.score([row])[0] for row in rows] == pytest.approx(expected, abs=1e-5)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    assert scorer.score([rows[place] for place in order]) == pytest.approx([expected[place] for place in order], abs=1e-5)
    small = RewardScorer(str(export), max_tokens=64)
    assert small.score(rows) == pytest.approx(expected, abs=1e-5)


def test_trap_10_30_rewards_are_raw_float32_logits(export: Path) -> None:
    rewards = RewardScorer(str(export)).score(conversations())
    assert all(float(np.float32(reward)) == reward for reward in rewards)
    assert min(rewards) < 0 < max(rewards), "no sigmoid"


def test_encoder_is_scored_packed(tmp_path: Path) -> None:
    export = tiny_export(tmp_path / "model", "modernbert")
    scorer = RewardScorer(str(export))
    rows = conversations(2, 3)
    rewards = scorer.score(rows)
    assert scorer.layout == "packed"
    assert rewards == pytest.approx([scorer.score([row])[0] for row in rows], abs=1e-5)
    assert np.ptp(rewards) > 1e-3, "guard: the rewards differ"


def test_call_as_a_trl_reward_function(export: Path) -> None:
    """`GRPOTrainer._calculate_rewards` passes keywords, with further columns and the state of the trainer."""
    scorer = RewardScorer(str(export))
    rows = conversations(2, 2)
    further: dict[str, Any] = {
        "completion_ids": [[1, 2]] * 4,
        "solution": ["x"] * 4,
        "trainer_state": SimpleNamespace(global_step=3),
        "log_extra": print,
        "log_metric": print,
    }
    texts = scorer(prompts=[row[0]["content"] for row in rows], completions=[row[1]["content"] for row in rows], **further)
    messages = scorer(prompts=[row[:1] for row in rows], completions=[row[1:] for row in rows], **further)
    assert texts == messages == scorer.score(rows)
    assert all(isinstance(reward, float) for reward in texts)
    assert scorer.__name__ == "rmtrain_reward"
    assert torch.tensor(texts, dtype=torch.float32).tolist() == texts


def test_trl_trains_with_the_scorer(export: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = AutoTokenizer.from_pretrained(export).chat_template
    policy = make_base(tmp_path / "policy", tokenizer)
    scorer = RewardScorer(str(export))
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "solution": "x"} for text in SENTENCES[:4]])
    trainer = GRPOTrainer(
        str(policy),
        reward_funcs=[scorer],
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/rmtrain_reward/mean" in entry]
    assert len(logged) == 1
    assert logged[0]["rewards/rmtrain_reward/std"] > 0, "guard: the completions differ, and so do their rewards"


def test_unscorable_conversations_are_named(export: Path) -> None:
    scorer = RewardScorer(str(export))
    good = conversation("a", "b")
    assert scorer.limit.max_length == LONGEST, "the model's own limit"
    for bad, shown in (
        (good[:1], "user"),
        ([{"role": "system", "content": " "}], ""),
        ([], ""),
        ([{"role": "poet", "content": "x"}], "'poet'"),
        (conversation("c", "word " * 400), "256"),
    ):
        with pytest.raises(DataError) as refused:
            scorer.score([good, bad])
        assert refused.value.problems[0].startswith("conversation 1")
        assert shown in refused.value.problems[0]
    with pytest.raises(DataError, match="1 and 2"):
        scorer(prompts=["a"], completions=["b", "c"])
    assert scorer.score([]) == []
    cutting = RewardScorer(str(export), overlong="cut")
    assert len(cutting.score([conversation("a", "word " * 400)])) == 1
    with torch.no_grad():
        scorer.model.head_weight_1H.fill_(float("nan"))
    with pytest.raises(NumericError, match=r"^conversation 0: "):
        scorer.score([good])


def test_importing_rmtrain_loads_no_torch() -> None:
    code = "import sys, rmtrain; assert 'RewardScorer' in rmtrain.__all__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


def line(row: Any) -> Line:
    return Line("in.jsonl:7", json.dumps(row).encode() if not isinstance(row, bytes) else row)


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"messages": [USER, REPLY]}, [USER], [[REPLY]]),
        ({"prompt": "hi", "response": "yes"}, [USER], [[REPLY]]),
        ({"prompt": [USER], "completion": [REPLY]}, [USER], [[REPLY]]),
        ({"prompt": "hi", "responses": ["yes", REPLY, [REPLY]]}, [USER], [[REPLY]] * 3),
        ({"prompt": [USER], "completions": [[REPLY, USER, REPLY]]}, [USER], [[REPLY, USER, REPLY]]),
        ({"messages": [REPLY]}, [], [[REPLY]]),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "response": "yes"}, [USER], [[REPLY]]),
    ],
)
def test_lines_are_parsed_to_requests(row: dict[str, Any], prompt: list[Any], responses: list[Any]) -> None:
    parsed = parse_input(line(row), 7)
    assert list(parsed.request.prompt) == prompt
    assert [list(response) for response in parsed.request.responses] == responses
    assert parsed.request.id == "in.jsonl:7"


@pytest.mark.parametrize(
    ("row", "place", "shown"),
    [
        (b'{"prompt": "a", "response": ', "in.jsonl:7:29: ", ""),
        ({"prompt": "a"}, "in.jsonl:7: ", "prompt"),
        ({"prompt": "a", "response": "b", "responses": ["c"]}, "in.jsonl:7: ", "prompt, response, responses"),
        ({"prompt": "a", "responses": []}, "in.jsonl:7: responses: ", ""),
        ({"prompt": "a", "responses": "b"}, "in.jsonl:7: responses: ", ""),
        ({"prompt": "a", "responses": ["b", None]}, "in.jsonl:7: responses[1]: ", "null"),
        ({"prompt": 3, "response": "b"}, "in.jsonl:7: prompt: ", "number"),
        ({"messages": [USER]}, "in.jsonl:7: messages: ", "user"),
        ({"messages": [USER, REPLY], "rewards": 1}, "in.jsonl:7: rewards: ", ""),
        ([1], "in.jsonl:7: ", "list"),
    ],
)
def test_malformed_lines_are_located(row: Any, place: str, shown: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_input(line(row), 7)
    (problem,) = refused.value.problems
    assert problem.startswith(place)
    assert shown in problem


def test_output_lines_keep_input_keys() -> None:
    several = parse_input(line({"id": "x", "prompt": "hi", "responses": ["a", "b", "c"]}), 7)
    assert json.loads(format_response(several, (0.5, 0.75, 0.75), False, best_of=False)) == {
        **json.loads(several.text),
        "rewards": [0.5, 0.75, 0.75],
        "input_line": 7,
    }
    assert json.loads(format_response(several, (0.5, 0.75, 0.75), True, best_of=True)) == {
        "id": "x",
        "prompt": "hi",
        "response": "b",
        "reward": 0.75,
        "best": 1,
        "rewards": [0.5, 0.75, 0.75],
        "truncated": True,
        "input_line": 7,
    }
    one = parse_input(line({"messages": [USER, REPLY]}), 8)
    written = json.loads(format_response(one, (0.5,), False, best_of=True))
    assert written == {"messages": [USER, REPLY], "reward": 0.5, "input_line": 8}


@pytest.mark.parametrize(
    "value",
    [
        *("1e999", "-1e400", "0.10000000000000000000000001", "-0.0", "12345678901234567890123456789"),
        *('"\\u00e9\\u0000\\\\\\""', '{"a" : [ ] ,"b":[{} , null]}', "[[[[1E+2]]]]", "{ }"),
    ],
)
@pytest.mark.parametrize(
    "form", ['{{"meta":{0},"prompt":"p","response":"r"}}', ' {{ "prompt" : "p" ,"responses":[{{"x":{0},{1}}},"b"] }} ']
)
def test_values_stay_as_they_are_written(value: str, form: str) -> None:
    text = form.format(value, '"role":"assistant","content":"é, \\"}]"')
    row = parse_input(Line("in.jsonl:1", text.encode()), 1)
    for best_of in (False, True):
        written = format_response(row, (0.75, 0.5), False, best_of)
        assert value in written
        assert json.loads(written)["input_line"] == 1


READING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<assistant>' if add_generation_prompt else eos_token }}"
)
TOOL = {"type": "function", "function": {"name": "add"}}


def test_variables_change_rewards_alike(tmp_path: Path) -> None:
    """In conversations, as columns of TRL, and in lines, rewards are those of transformers with the same variables."""
    export = tiny_export(tmp_path / "model", template=READING)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    scorer, talk = RewardScorer(str(export)), conversation("How?", "So.")
    tools, kwargs = [None, [TOOL], None], [None, {"mood": None}, {"mood": "calm"}]
    expected = []
    for its, further in zip(tools, kwargs, strict=True):
        ids = tokenizer.apply_chat_template(talk, tools=its, return_tensors="pt", return_dict=True, **(further or {}))
        with torch.no_grad():
            expected.append(model(**ids).logits[0, 0].item())
    assert len(set(expected)) == 3, "guard: variables matter"
    assert scorer.score([talk] * 3, tools=tools, chat_template_kwargs=kwargs) == pytest.approx(expected, abs=1e-5)
    columns: dict[str, Any] = {"tools": [its and json.dumps(its) for its in tools], "chat_template_kwargs": kwargs}
    assert scorer(prompts=["How?"] * 3, completions=["So."] * 3, **columns) == pytest.approx(expected, abs=1e-5)
    rows = [
        parse_input(line({"messages": talk, "tools": t, "chat_template_kwargs": k}), 1)
        for t, k in zip(tools, kwargs, strict=True)
    ]
    tokens, _ = scorer.encoder.encode_for_scoring([row.request for row in rows])
    assert [reward for (reward,) in scorer.rewards(tokens)] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="2"):
        scorer.score([talk] * 3, tools=tools[:2])
    with pytest.raises(DataError, match=r"^conversation 1: tools "):
        scorer.score([talk] * 2, tools=[None, "hammer"])
    with pytest.raises(DataError, match=r"^conversation 0: chat_template_kwargs.tokenize: "):
        scorer.score([talk], chat_template_kwargs=[{"tokenize": True}])


def test_tools_of_other_templates_are_ignored(export: Path) -> None:
    """A data set for a policy may have a column of this name, in any form."""
    scorer = RewardScorer(str(export))
    assert scorer(prompts=["a"], completions=["b"], tools=["hammer"]) == scorer(prompts=["a"], completions=["b"])
    assert parse_input(line({"prompt": "a", "response": "b", "tools": "hammer"}), 1, scorer.variables).request.variables == {}
    with pytest.raises(DataError, match=r"^in.jsonl:7: tools "):
        parse_input(line({"prompt": "a", "response": "b", "tools": "hammer"}), 1)


@pytest.mark.parametrize(
    "text", ["", "  ", "\n\nHuman: and then?", "\n\nHuman: q\n\nAssistant: a", json.dumps([USER, REPLY]), "[{'role': 'user'}]"]
)
def test_any_text_can_be_a_completion(export: Path, text: str) -> None:
    """A policy may write anything: it is scored unchanged, the same as a text and as the content of a message."""
    scorer = RewardScorer(str(export))
    message = {"role": "assistant", "content": text}
    rewards = [
        *scorer(prompts=["a"], completions=[text]),
        *scorer(prompts=[[{"role": "user", "content": "a"}]], completions=[[message]]),
        *scorer.score([[{"role": "user", "content": "a"}, message]]),
    ]
    for reply in (text, message, [message]):
        request = parse_input(line({"prompt": "a", "response": reply}), 1).request
        rewards += scorer.rewards(scorer.encoder.encode_for_scoring([request])[0])[0]
    assert rewards == [rewards[0]] * 6
    assert scorer(prompts=["a"], completions=["b"]) != rewards[:1], "guard"


def test_hidden_prompts_are_named() -> None:
    """A prompt that is messages as text is a fault of the file."""
    for prompt in (json.dumps([USER]), str([USER])):
        with pytest.raises(DataError, match=r"^in.jsonl:7: prompt: "):
            parse_input(line({"prompt": prompt, "response": "b"}), 7)


def test_text_after_a_reply_is_refused(tmp_path: Path) -> None:
    """A template that writes more after the last reply of some conversations: these have no reward, and are named."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token }}{{ 'the end' if messages | length > 2 }}"
    )
    scorer = RewardScorer(str(tiny_export(tmp_path / "model", template=template)))
    short, long = conversation("a", "b"), [*conversation("a", "b"), *conversation("c", "d")]
    assert len(scorer.score([short])) == 1
    with pytest.raises(DataError, match=r"^conversation 1: .*the end"):
        scorer.score([short, long])
