import threading

import pytest

from rmtrain.data.text import templates as render_module
from rmtrain.data.text.templates import render, render_all
from rmtrain.errors import DataError
from tests.helpers import byte_bpe

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
