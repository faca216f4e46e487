"""Conversations as text, and the place of the responses in it."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.text import templates as render_module
from rmtrain.data.text.templates import CHAT_TEMPLATES, Renderer, render, render_all
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from tests.helpers import SENTENCES, bert_like, byte_bpe, llama_like, roberta_like

TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_conversations_are_rendered_independently() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ '>' if add_generation_prompt }}"
    assert render_all([TALK, TALK[:1]], tokenizer, ["s:0", "s:1"]) == ["user=q;assistant=a;", "user=q;"]
    assert render(TALK[:1], tokenizer, add_generation_prompt=True) == "user=q;>"
    assert render_all([], tokenizer, []) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no such role') if messages[0].content == 'bad' }}", "TemplateError: no such role"),
        ("{{ messages[0].nothing.more if messages[0].content == 'bad' }}", "UndefinedError: "),
        ("{{ (1 + 'a') if messages[0].content == 'bad' }}", "TypeError: "),
        ("{{ (1 / 0) if messages[0].content == 'bad' }}", "ZeroDivisionError: "),
        ("{% if %}", "TemplateSyntaxError: "),
        ("{{ lipsum.__globals__['os'].popen('touch canary') }}", "SecurityError: "),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
    ],
)
def test_a_failing_template_names_the_row(template: str, words: str) -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = template
    bad = ({"role": "user", "content": "bad"},)
    with pytest.raises(DataError) as error:
        render_all([TALK, bad], tokenizer, ["s:0", "s:1"])
    message = str(error.value)
    first = "s:0" if "bad" not in template else "s:1"
    assert message.startswith(f"{first}: ")
    assert words in message
    assert "\n" not in message


def test_an_endless_template_is_stopped() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"0\.3 seconds"):
        render_all([TALK], tokenizer, ["s:0"], seconds=0.3)


def test_a_template_that_writes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_module, "MAX_TEXT_CHARACTERS", 1000)
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{{ 'x' * 1001 }}"
    with pytest.raises(DataError, match=r"^s:0: .*1001 .*1000"):
        render_all([TALK], tokenizer, ["s:0"])


def test_rendering_works_outside_the_main_thread() -> None:
    tokenizer, texts = byte_bpe(), []
    tokenizer.chat_template = "{{ messages[0].content }}"
    thread = threading.Thread(target=lambda: texts.append(render(TALK, tokenizer)))
    thread.start()
    thread.join()
    assert texts == ["q"]


CONTENTS = [*SENTENCES[:6], " spaces ", "\n", "{{ x }}", "<|endoftext|>", "\x000\x00", "naïve 日本語", "a"]
TRIMMING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt else eos_token }}"
)


def comparisons(count: int) -> list[Comparison]:
    """Return rows with and without a system message, of up to three exchanges, with two or three responses of one or three messages."""
    rng = random.Random(0)

    def message(role: str) -> Message:
        return {"role": role, "content": rng.choice(CONTENTS)}

    rows = []
    for number in range(count):
        prompt = [message("system")] * rng.randrange(2) + [
            message(role) for role in ["user", "assistant"] * rng.randrange(3) + ["user"]
        ]
        responses = tuple(
            tuple(message(role) for role in ["assistant", *["user", "assistant"] * rng.randrange(2)])
            for _ in range(rng.randrange(2, 4))
        )
        rows.append(Comparison(f"s:{number}", "s", tuple(prompt) if number % 5 else (), responses))
    return rows


@pytest.mark.parametrize("build", [byte_bpe, llama_like, bert_like, roberta_like])
@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, TRIMMING], ids=[*CHAT_TEMPLATES, "trimming"])
def test_responses_are_found_in_their_text(build: Callable[[], PreTrainedTokenizerFast], template: str) -> None:
    tokenizer, rows = prepared(build(), template), comparisons(60)
    for row, rendered in zip(rows, Renderer(tokenizer).render(rows), strict=True):
        assert rendered.texts == [render((*row.prompt, *response), tokenizer) for response in row.responses]
        assert rendered.begin is not None
        number, position = rendered.begin
        own = row.responses[number][0]["content"].strip()
        assert rendered.texts[number].startswith(own, position)
        before = [message["content"].strip() for message in row.prompt]
        assert all(content in rendered.texts[number][:position] for content in before)


def test_a_rewritten_response_is_named() -> None:
    tokenizer = prepared(byte_bpe(), TRIMMING.replace("m.content | trim", "m.content | replace('7', 'seven')"))
    turns = [({"role": "assistant", "content": text},) for text in ("7", "six", "17")]
    row = Comparison("s:0", "s", ({"role": "user", "content": "how many?"},), tuple(turns))
    (rendered,) = Renderer(tokenizer).render([row])
    assert rendered.rewritten == (0, 2)
    assert rendered.begin is not None
    assert rendered.begin[0] == 1
    (rendered,) = Renderer(tokenizer).render([replace(row, responses=(turns[0], turns[2]))])
    assert (rendered.rewritten, rendered.begin) == ((0, 1), None)


def test_a_response_may_be_written_twice() -> None:
    tokenizer = prepared(
        byte_bpe(), "{{ messages[-1].content }}|{% for m in messages %}{{ m.content }};{% endfor %}{{ eos_token }}"
    )
    turns = tuple(({"role": "assistant", "content": text},) for text in "ab")
    (rendered,) = Renderer(tokenizer).render([Comparison("s:0", "s", ({"role": "user", "content": "q"},), turns)])
    assert rendered.texts == ["a|q;a;<|endoftext|>", "b|q;b;<|endoftext|>"]


@pytest.mark.parametrize("template", ["simple_concat", TRIMMING])
def test_an_overlarge_text_names_its_row(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = prepared(byte_bpe(), template)
    monkeypatch.setattr(render_module, "MAX_TEXT_CHARACTERS", 1000)
    long = Comparison("s:7", "s", (), tuple(({"role": "assistant", "content": side * 1000},) for side in "ab"))
    with pytest.raises(DataError, match=r"^s:7: .*10\d\d .*1000"):
        Renderer(tokenizer).render([long])


def test_a_refused_role_names_the_row() -> None:
    refusal = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}{{{{ m.content }}}}{{% endfor %}}{{{{ eos_token }}}}"
    tokenizer, (good, bad) = prepared(byte_bpe(), template), comparisons(12)[1:3]
    bad = replace(bad, prompt=({"role": "system", "content": "x"}, {"role": "user", "content": "q"}))
    good = replace(good, prompt=({"role": "user", "content": "q"},))
    with pytest.raises(DataError, match=rf"^{bad.id}: .*TemplateError: no$"):
        Renderer(tokenizer).render([good, bad])


QWEN = (  # as qwen3 has it: thoughts of the last turn alone, calls as JSON, results of tools
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if loop.last and m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% set f = c.function if c.function is defined else c %}"
    '<call>{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}</call>{% endfor %}'
    "{{ '\n' }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
)
NAMES_ONLY = QWEN.replace(', "arguments": {{ f.arguments | tojson }}', "")
QUESTION, REPLY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 2}}}]}
OTHER_CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"x": 3}}]}
RESULT = {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"}


def test_tool_calls_and_results_reach_the_template() -> None:
    tokenizer = prepared(byte_bpe(), QWEN)
    row = Comparison("s:0", "s", (QUESTION,), ((CALL,), (OTHER_CALL,), (CALL, RESULT, REPLY)))
    (rendered,) = Renderer(tokenizer).render([row])
    assert rendered.texts[0] == (
        '<|user|>2 + 2?\n<|assistant|><call>{"name": "add", "arguments": {"x": 2}}</call>\n<|endoftext|>'
    )
    assert '"x": 3' in rendered.texts[1]
    assert "<|tool|>4\n<|assistant|>It is 4." in rendered.texts[2]
    assert (rendered.rewritten, rendered.hidden) == ((), {})
    assert rendered.begin == (0, len("<|user|>2 + 2?\n<|assistant|>"))


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, NAMES_ONLY], ids=[*CHAT_TEMPLATES, "names only"])
def test_trap_16_tool_calls_hidden_by_a_template(template: str) -> None:
    renderer = Renderer(prepared(byte_bpe(), template))
    rows = [
        Comparison("s:0", "s", (QUESTION,), ((CALL,), (REPLY,))),
        Comparison("s:1", "s", (QUESTION, CALL, RESULT), ((REPLY,), (REPLY | {"content": "5"},))),
        Comparison("s:2", "s", (QUESTION,), ((REPLY,), (REPLY | {"content": "5"},))),
    ]
    hidden = [rendered.hidden for rendered in renderer.render(rows)]
    assert hidden == [{0: "tool_calls"}, {0: "tool_calls", 1: "tool_calls"}, {}]


def test_trap_16_thoughts_hidden_by_a_template() -> None:
    thinking = REPLY | {"reasoning_content": " two and two "}
    row = Comparison("s:0", "s", (QUESTION,), ((thinking,), (REPLY,), (thinking, QUESTION, REPLY)))
    (rendered,) = Renderer(prepared(byte_bpe(), QWEN)).render([row])
    assert rendered.hidden == {2: "reasoning_content"}, "an earlier turn of the response"
    assert rendered.texts[0].startswith("two and two", (rendered.begin or (0, 0))[1]), "it begins with its thoughts"
    (rendered,) = Renderer(prepared(byte_bpe(), "simple_chat")).render([row])
    assert rendered.hidden == {0: "reasoning_content", 2: "reasoning_content"}
    earlier = Comparison("s:1", "s", (QUESTION, thinking, QUESTION), ((REPLY,), (REPLY | {"content": "5"},)))
    (rendered,) = Renderer(prepared(byte_bpe(), QWEN)).render([earlier])
    assert rendered.hidden == {}, "templates also leave out those of the prompt when the model is served"
