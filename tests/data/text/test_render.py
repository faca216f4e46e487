"""Conversations as text, and the place of the responses in it."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.text import templates as render_module
from rmtrain.data.text.templates import CHAT_TEMPLATES, render, render_all
from rmtrain.data.text.tokenize import Renderer
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from tests.helpers import SENTENCES, bert_like, byte_bpe, llama_like, roberta_like

TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_many_conversations_are_rendered_as_each_alone() -> None:
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
def test_a_template_that_fails_is_one_line_that_names_the_row(template: str, words: str) -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = template
    bad = ({"role": "user", "content": "bad"},)
    with pytest.raises(DataError) as error:
        render_all([TALK, bad], tokenizer, ["s:0", "s:1"])
    message = str(error.value)
    first = "s:0" if "bad" not in template else "s:1"
    assert message.startswith(f"{first}: the chat template failed: {words}")
    assert "\n" not in message


def test_a_template_that_loops_is_stopped() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"the chat template ran for more than 0.3 seconds; does it loop\?"):
        render_all([TALK], tokenizer, ["s:0"], seconds=0.3)


def test_a_template_that_writes_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_module, "MAX_TEXT_CHARACTERS", 1000)
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{{ 'x' * 1001 }}"
    with pytest.raises(DataError, match=r"s:0: the chat template wrote 1001 characters, more than 1000"):
        render_all([TALK], tokenizer, ["s:0"])


def test_rendering_works_outside_the_main_thread_too() -> None:
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
    """Rows with and without a system message, of one to three exchanges, with two or three responses of one or three messages."""
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
def test_filled_forms_are_what_the_template_writes(build: Callable[[], PreTrainedTokenizerFast], template: str) -> None:
    tokenizer, rows = prepared(build(), template), comparisons(60)
    renderer = Renderer(tokenizer)
    for row, rendered in zip(rows, renderer.render(rows), strict=True):
        assert rendered.texts.whole == [render((*row.prompt, *response), tokenizer) for response in row.responses]
        assert rendered.texts.begin is not None
        number, position = rendered.texts.begin
        own = row.responses[number][0]["content"].strip()
        assert rendered.texts.whole[number].startswith(own, position)
        before = [message["content"].strip() for message in row.prompt]
        assert all(content in rendered.texts.whole[number][:position] for content in before)
    if renderer.is_verbatim:
        slow = Renderer(tokenizer)
        slow.is_verbatim = False
        assert [row.texts.whole for row in slow.render(rows)] == [row.texts.whole for row in renderer.render(rows)]
    assert renderer.is_verbatim == (template != TRIMMING and build is not roberta_like), "guard: both ways were taken"


def test_a_template_is_run_once_for_each_sequence_of_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, rows, runs = prepared(byte_bpe(), "simple_chat"), comparisons(60), []
    inner = render_module._apply
    monkeypatch.setattr(render_module, "_apply", lambda talks, *rest: runs.extend(talks) or inner(talks, *rest))
    Renderer(tokenizer).render(rows)
    roles = {tuple(m["role"] for m in (*row.prompt, *response)) for row in rows for response in row.responses}
    assert len(runs) == len(roles) < 40


def test_a_response_that_is_rewritten_is_named() -> None:
    tokenizer = prepared(byte_bpe(), TRIMMING.replace("m.content | trim", "m.content | replace('7', 'seven')"))
    turns = [({"role": "assistant", "content": text},) for text in ("7", "six", "17")]
    row = Comparison("s:0", "s", ({"role": "user", "content": "how many?"},), tuple(turns))
    (rendered,) = Renderer(tokenizer).render([row])
    assert rendered.rewritten == (0, 2)
    assert rendered.texts.begin is not None
    assert rendered.texts.begin[0] == 1
    (rendered,) = Renderer(tokenizer).render([replace(row, responses=(turns[0], turns[2]))])
    assert (rendered.rewritten, rendered.texts.begin) == ((0, 1), None)


def test_a_content_that_is_written_twice_is_rendered_as_it_is() -> None:
    tokenizer = prepared(
        byte_bpe(), "{{ messages[-1].content }}|{% for m in messages %}{{ m.content }};{% endfor %}{{ eos_token }}"
    )
    turns = tuple(({"role": "assistant", "content": text},) for text in "ab")
    renderer = Renderer(tokenizer)
    (rendered,) = renderer.render([Comparison("s:0", "s", ({"role": "user", "content": "q"},), turns)])
    assert renderer.is_verbatim
    assert rendered.texts.whole == ["a|q;a;<|endoftext|>", "b|q;b;<|endoftext|>"]


@pytest.mark.parametrize("template", ["simple_concat", TRIMMING])
def test_a_text_without_end_names_its_row(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = prepared(byte_bpe(), template)
    monkeypatch.setattr(render_module, "MAX_TEXT_CHARACTERS", 1000)
    long = Comparison("s:7", "s", (), tuple(({"role": "assistant", "content": side * 1000},) for side in "ab"))
    with pytest.raises(DataError, match=r"^s:7: the chat template wrote 10\d\d characters, more than 1000$"):
        Renderer(tokenizer).render([long])


def test_a_template_that_refuses_roles_names_the_row() -> None:
    refusal = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}{{{{ m.content }}}}{{% endfor %}}{{{{ eos_token }}}}"
    tokenizer, (good, bad) = prepared(byte_bpe(), template), comparisons(12)[1:3]
    bad = replace(bad, prompt=({"role": "system", "content": "x"}, {"role": "user", "content": "q"}))
    good = replace(good, prompt=({"role": "user", "content": "q"},))
    assert Renderer(tokenizer).is_verbatim
    with pytest.raises(DataError, match=rf"^{bad.id}: the chat template failed: TemplateError: no$"):
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


def test_calls_and_results_of_tools_reach_the_template() -> None:
    tokenizer = prepared(byte_bpe(), QWEN)
    row = Comparison("s:0", "s", (QUESTION,), ((CALL,), (OTHER_CALL,), (CALL, RESULT, REPLY)))
    (rendered,) = Renderer(tokenizer).render([row])
    assert rendered.texts.whole[0] == (
        '<|user|>2 + 2?\n<|assistant|><call>{"name": "add", "arguments": {"x": 2}}</call>\n<|endoftext|>'
    )
    assert '"x": 3' in rendered.texts.whole[1]
    assert "<|tool|>4\n<|assistant|>It is 4." in rendered.texts.whole[2]
    assert (rendered.rewritten, rendered.hidden) == ((), {})
    assert rendered.texts.begin == (0, len("<|user|>2 + 2?\n<|assistant|>"))


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, NAMES_ONLY], ids=[*CHAT_TEMPLATES, "names only"])
def test_trap_16_calls_that_a_template_does_not_write_are_told(template: str) -> None:
    renderer = Renderer(prepared(byte_bpe(), template))
    rows = [
        Comparison("s:0", "s", (QUESTION,), ((CALL,), (REPLY,))),
        Comparison("s:1", "s", (QUESTION, CALL, RESULT), ((REPLY,), (REPLY | {"content": "5"},))),
        Comparison("s:2", "s", (QUESTION,), ((REPLY,), (REPLY | {"content": "5"},))),
    ]
    hidden = [rendered.hidden for rendered in renderer.render(rows)]
    assert hidden == [{0: "tool_calls"}, {0: "tool_calls", 1: "tool_calls"}, {}]


def test_trap_16_thoughts_that_a_template_does_not_write_are_told() -> None:
    thinking = REPLY | {"reasoning_content": " two and two "}
    row = Comparison("s:0", "s", (QUESTION,), ((thinking,), (REPLY,), (thinking, QUESTION, REPLY)))
    (rendered,) = Renderer(prepared(byte_bpe(), QWEN)).render([row])
    assert rendered.hidden == {2: "reasoning_content"}, "an earlier turn of the response"
    assert rendered.texts.whole[0].startswith("two and two", (rendered.texts.begin or (0, 0))[1]), "it begins with its thoughts"
    (rendered,) = Renderer(prepared(byte_bpe(), "simple_chat")).render([row])
    assert rendered.hidden == {0: "reasoning_content", 2: "reasoning_content"}
    earlier = Comparison("s:1", "s", (QUESTION, thinking, QUESTION), ((REPLY,), (REPLY | {"content": "5"},)))
    (rendered,) = Renderer(prepared(byte_bpe(), QWEN)).render([earlier])
    assert rendered.hidden == {}, "in the prompt templates leave them out when they serve, too"
