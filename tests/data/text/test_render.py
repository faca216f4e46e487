"""Conversations as text, and the place of the responses in it."""

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.text import renderer as render_module
from rmtrain.data.text import template_process
from rmtrain.data.text.renderer import Renderer, render, render_all, template_variables, try_render
from rmtrain.data.text.templates import CHAT_TEMPLATES
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError, TryAgain
from tests.helpers import SENTENCES, bert_like, byte_bpe, llama_like, roberta_like

TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_conversations_are_rendered_independently() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ '>' if add_generation_prompt }}"
    assert render_all([TALK, TALK[:1]], tokenizer, ["s:0", "s:1"]) == ["user=q;assistant=a;", "user=q;"]
    assert render(TALK[:1], tokenizer, add_generation_prompt=True) == "user=q;>"
    assert render_all([], tokenizer, []) == try_render([], tokenizer, []) == []


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


ABSURD = {
    "a power of constants": "{% set a = 10 ** (10 ** 9) %}{{ messages[0].content }}",
    "a power of what it is given": "{{ (messages | length) ** (10 ** 11) }}{{ (messages | length) ** (9 ** (9 ** 9)) }}",
    "rounding to a billion digits": "{{ 1.5 | round(10 ** 10, 'floor') }}",
    "a wide number": "{{ '%2000000000d' | format(1) }}",
    "a padded text": "{{ messages[0].content.ljust(10 ** 11) }}",
    "a long text": "{{ 'x' * 3000000000 }}",
    "a text that doubles": "{% set ns = namespace(x='a') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "a list that doubles": "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}x",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("what", ABSURD)
def test_templates_are_bounded_in_time_and_memory(what: str) -> None:
    """Also where Python computes in C, which no signal interrupts, and where jinja2 computes constants while it compiles."""
    tokenizer = byte_bpe()
    tokenizer.chat_template = ABSURD[what]
    before, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as refused:
        render_all([TALK], tokenizer, ["s:0"], seconds=1.0)
    assert "the chat template" in str(refused.value)
    assert "memory" in str(refused.value) or what not in ("a wide number", "a padded text", "a long text")
    assert time.monotonic() - before < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 2**18, "kB: this process took nothing"
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(TALK, tokenizer) == "q", "guard: the next template is rendered"


def test_waiting_for_a_processor_is_no_endless_loop() -> None:
    """The limit is that of computing: on a busy machine a template waits longer than it computes, here as long as it is stopped."""
    tokenizer = prepared(byte_bpe(), "simple_concat")
    expected, before = render(TALK, tokenizer), time.monotonic()
    pid = template_process._processes[tokenizer].pid
    os.kill(pid, signal.SIGSTOP)
    waking = threading.Timer(1.0, os.kill, (pid, signal.SIGCONT))
    waking.start()
    assert render_all([TALK], tokenizer, ["s:0"], seconds=0.3) == [expected]
    waking.join()
    assert time.monotonic() - before > 0.9, "guard: it took longer than the limit"


def test_killed_rendering_can_be_repeated() -> None:
    tokenizer = prepared(byte_bpe(), "simple_concat")
    expected = render(TALK, tokenizer)
    os.kill(template_process._processes[tokenizer].pid, signal.SIGKILL)
    with pytest.raises(TryAgain, match="killed"):
        render(TALK, tokenizer)
    assert render(TALK, tokenizer) == expected


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
    one, other = Renderer(tokenizer).render([good, bad])
    assert (one.faults, other.faults.keys()) == ({}, set(range(len(bad.responses))))
    assert {(fault.reason, fault.detail[-17:]) for fault in other.faults.values()} == {("template_refused", "TemplateError: no")}


def test_a_refused_response_leaves_the_others() -> None:
    """Only what the template raises on is refused; the place of the other responses does not change."""
    refusal = "{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}{{{{ m.role }}}}: {{{{ m.content }}}}\n{{% endfor %}}{{{{ eos_token }}}}"
    tokenizer = prepared(byte_bpe(), template)
    turns = [({"role": "assistant", "content": text},) for text in ("bad", "fine", "good")]
    row = Comparison("s:0", "s", ({"role": "user", "content": "how?"},), tuple(turns))
    (all_three,), (two,) = (Renderer(tokenizer).render([one]) for one in (row, replace(row, responses=(turns[1], turns[2]))))
    assert (all_three.faults.keys(), all_three.begin, two.begin) == ({0}, (1, two.begin[1] if two.begin else 0), two.begin)
    assert list(all_three.texts[1:]) == two.texts


ENDINGS = {
    "only in long talks": "{% if messages | length > 2 %}[end of chat]{% endif %}",
    "only after a word": "{% if 'stop' in messages[-1].content %}<|assistant|>{% endif %}",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("close", ["", "<|im_end|>\n"])
@pytest.mark.parametrize("build", [byte_bpe, bert_like])
def test_text_after_some_replies_is_named(build: Callable[[], PreTrainedTokenizerFast], close: str, ending: str) -> None:
    """A template that writes something after the last reply of some rows only: those have no reward, in any kind of template."""
    body = f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{close}{{% endfor %}}"
    tokenizer = prepared(build(), body + ending)
    asked, reply = {"role": "user", "content": "how?"}, {"role": "assistant", "content": "like this"}
    long = Comparison("s:0", "s", (asked, reply | {"content": "stop"}, asked), ((reply | {"content": "do stop"},), (reply,)))
    short = Comparison("s:1", "s", (asked,), ((reply,), (reply | {"content": "so "},)))
    one, other = Renderer(tokenizer).render([long, short])
    assert other.faults == {}
    assert one.faults.keys() == ({0, 1} if "length" in ending else {0})
    assert {fault.reason for fault in one.faults.values()} == {"text_after_reply"}
    assert all(ending.split("%}")[1][:5] in fault.detail for fault in one.faults.values())


def test_empty_reply_left_out_by_a_template() -> None:
    """A template that writes no turn for an empty reply would have the reward read at the prompt."""
    skipping = "{% for m in messages %}{% if m.content %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    row = Comparison("s:0", "s", ({"role": "user", "content": "q"},), (({"role": "assistant", "content": ""},),))
    for template, faults in ((skipping, {0}), ("simple_chat", set()), ("simple_concat", set())):
        (rendered,) = Renderer(prepared(byte_bpe(), template)).render([row])
        assert rendered.faults.keys() == faults, template


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def test_variables_reach_the_template() -> None:
    """Those of a row are used for it alone, in the texts of its responses and of its prompt."""
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    renderer = Renderer(prepared(byte_bpe(), template))
    turns = tuple(({"role": "assistant", "content": text},) for text in "XY")
    plain = Comparison("s:0", "s", ({"role": "user", "content": "q"},), turns)
    with_tools, moody = replace(plain, variables={"tools": TOOLS}), replace(plain, variables={"mood": "calm"})
    texts = [rendered.texts[0] for rendered in renderer.render([plain, with_tools, moody, plain])]
    body = "<user>q<assistant>X<|endoftext|>"
    written = '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'
    assert texts == [body, written + body, "calm" + body, body]
    (rendered,) = renderer.render([with_tools])
    assert rendered.begin == (0, len(written + "<user>q<assistant>"))


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% for m in messages %}{{ m.content }}{{ bos_token }}{% endfor %}{% if add_generation_prompt %}x{% endif %}", set()),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", {"tools"}),
        ("{% macro f(x) %}{{ x }}{{ documents }}{% endmacro %}{% set y = 1 %}{{ f(y) }}", {"documents"}),
        ("{% for m in messages %}{% generation %}{{ mood }}{% endgeneration %}{% break %}{% endfor %}", {"mood"}),
        (
            "{{ strftime_now('%d') }}{% set ns = namespace(a=range(3)) %}{{ raise_exception('x') if date_string else '' }}",
            {"date_string"},
        ),
        ("{% for m in messages %}{% if m.x %}{% set content = m.x %}{% endif %}{{ content }}{% endfor %}", set()),
        ("{% set tools = tools or [] %}{% set mood = mood | default('calm') %}{{ tools }}{{ mood }}", {"tools", "mood"}),
        ("{% if date_string is none %}{% set date_string = 'x' %}{% endif %}{{ date_string }}", {"date_string"}),
        ("{% if %}", set()),
        ("{{ " + "(" * 100_000, set()),
        ("{{ 10 ** (10 ** 10) }}{{ tools }}{{ 'x' * 10 ** 12 }}", {"tools"}),
        (
            "{{ 'x' | center(10 ** 11) }}{{ 1.5 | round(10 ** 10, 'floor') }}{{ [1] * 10 ** 10 }}{{ '%99999999999d' % 1 }}{{ mood }}",
            {"mood"},
        ),
        ("{% if 9 ** 9 ** 9 %}{{ 'x'.ljust(10 ** 11) ~ documents }}{% endif %}{% set y = 'x' * 10 ** 12 %}", {"documents"}),
    ],
)
def test_template_variables(template: str, names: set[str]) -> None:
    assert template_variables(template) == names


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
