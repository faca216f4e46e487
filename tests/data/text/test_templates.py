"""Chat templates and the special tokens around a text."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from rmtrain.data.text.renderer import render
from rmtrain.data.text.templates import (
    CHAT_TEMPLATES,
    MAX_TEMPLATE_CHARACTERS,
    NEW_PAD_TOKEN,
    choose_pad_token,
    edge_tokens,
    freeze_dates,
    resolve_template,
)
from rmtrain.errors import DataError, RecipeError
from tests.helpers import LLAMA_TEMPLATE, bert_like, byte_bpe, llama_like, roberta_like, unigram_like

TALK = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
)
END = "<|endoftext|>"


def resolved(name: str, tokenizer: PreTrainedTokenizerFast | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer or byte_bpe()
    assert resolve_template(name, tokenizer) == tokenizer.chat_template
    return tokenizer


RENDERED = {
    "simple_concat": (f"s q1 a1 q2 a2{END}", "s q1 a1 q2"),
    "simple_chat": (
        f"System: s\n\nUser: q1\n\nAssistant: a1\n\nUser: q2\n\nAssistant: a2{END}",
        "System: s\n\nUser: q1\n\nAssistant: a1\n\nUser: q2\n\nAssistant:",
    ),
    "chatml": (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        f"<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>{END}",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
    "zephyr": (
        f"<|system|>\ns{END}\n<|user|>\nq1{END}\n<|assistant|>\na1{END}\n<|user|>\nq2{END}\n<|assistant|>\na2{END}",
        f"<|system|>\ns{END}\n<|user|>\nq1{END}\n<|assistant|>\na1{END}\n<|user|>\nq2{END}\n<|assistant|>\n",
    ),
    "tulu": (
        f"<|system|>\ns\n<|user|>\nq1\n<|assistant|>\na1{END}\n<|user|>\nq2\n<|assistant|>\na2{END}",
        f"<|system|>\ns\n<|user|>\nq1\n<|assistant|>\na1{END}\n<|user|>\nq2\n<|assistant|>\n",
    ),
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_built_in_templates(name: str) -> None:
    tokenizer = resolved(name)
    assert (render(TALK, tokenizer), render(TALK[:-1], tokenizer, add_generation_prompt=True)) == RENDERED[name]


def test_simple_chat_equals_the_seed_page() -> None:
    seed = (
        "{% for message in messages %}{{'\n\n' if not loop.first else ''}}{{message['role']|capitalize + ': ' +message['content']}}"
        "{% endfor %}{{eos_token}}"
    )
    assert render(TALK, resolved("simple_chat")) == render(TALK, resolved(seed))


def test_chatml_ends_once_with_its_own_marker() -> None:
    special = ["<|im_end|>", "<|endoftext|>"]
    tokenizer = resolved("chatml", byte_bpe(special_tokens=special, eos_token="<|im_end|>", pad_token="<|endoftext|>"))
    assert render(TALK[1:3], tokenizer) == "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>"


TOKENIZERS = [byte_bpe, llama_like, unigram_like, bert_like, roberta_like]


@pytest.mark.parametrize("build", TOKENIZERS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_resolved_template_resolves_to_itself(build: type, name: str) -> None:
    tokenizer = build()
    template = resolve_template(name, tokenizer)
    assert resolve_template("tokenizer", tokenizer) == template
    assert resolve_template(template, build()) == template


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", f"[q1][a1]{END}"),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}\n", f"[q1][a1]{END}"),
        ("{% for m in messages %}[{{ m.content }}]{{ eos_token }}{{ '\n' }}{% endfor %}", f"[q1]{END}\n[a1]{END}"),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}  ", f"[q1][a1]{END}"),
        (
            "{%- set ns = namespace(n=0) -%}\n{% macro show(m) %}<{{ m.content }}>{% endmacro %}"
            "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ show(m) }}{% endfor %}{{ ns.n }}{{ eos_token }}{{ '\n' }}",
            f"<q1><a1>2{END}",
        ),
    ],
)
def test_a_template_is_completed_with_one_end_token(template: str, text: str) -> None:
    tokenizer = resolved(template)
    assert render(TALK[1:3], tokenizer) == text
    announced = render(TALK[1:2], tokenizer, add_generation_prompt=True)
    tokenizer.chat_template = template
    assert announced == render(TALK[1:2], tokenizer, add_generation_prompt=True), "a prompt is unchanged"


def test_trap_04_bos_is_written_once() -> None:
    assert render(TALK[1:3], resolved("tokenizer", llama_like())) == "<s>[INST] q1 [/INST] a1</s>"
    assert (
        render(TALK[1:3], resolved(LLAMA_TEMPLATE.replace("{{ bos_token }}", ""), llama_like())) == "<s>[INST] q1 [/INST] a1</s>"
    )
    with pytest.raises(DataError, match=r"^data.chat_template: .*<s>"):
        resolved("{{ bos_token }}" + LLAMA_TEMPLATE, llama_like())


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKERS = ["<|im_start|>", "<|im_end|>"]


def chatml_like(eos: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the markers of ChatML, and this end token."""
    return byte_bpe(special_tokens=[*MARKERS, END], eos_token=eos)


@pytest.mark.parametrize(
    "after",
    [
        "{{ eos_token }}{{ eos_token }}",
        "{{ eos_token }}\n{{ eos_token }}",
        "{{ eos_token }}\nAssistant:",
        "{{ eos_token }} 'it\\'s \"over\"' \\n{{ '{% raw %} }}' }}",
        "{{ eos_token }}{{ 'first' }}",
    ],
)
@pytest.mark.parametrize("build", [byte_bpe, llama_like, roberta_like])
def test_text_after_the_end_token_is_cut(build: type, after: str) -> None:
    """Whatever a template writes after the end token of the last reply; a prompt is announced as before."""
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}" + after
    tokenizer = build()
    announced = resolved(template, tokenizer) and render(TALK[1:2], tokenizer, add_generation_prompt=True)
    end = "" if build is roberta_like else str(tokenizer.eos_token)
    start = "<s>" if build is llama_like else ""
    assert render(TALK[1:3], tokenizer) == f"{start}[q1][a1]{end}"
    assert render(TALK[1:], tokenizer) == f"{start}[q1][a1][q2][a2]{end}"
    again = build()
    assert resolve_template(str(tokenizer.chat_template), again) == tokenizer.chat_template
    tokenizer.chat_template = template
    assert announced == start + render(TALK[1:2], tokenizer, add_generation_prompt=True)


def test_nothing_stands_between_reply_and_end() -> None:
    """The line feed after a turn's own marker is cut, whether or not that marker is the end token."""
    body = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>"
    assert render(TALK[1:3], resolved(CHATML, chatml_like("<|im_end|>"))) == body
    assert render(TALK[1:3], resolved(CHATML, chatml_like(END))) == body + END
    assert render(TALK[1:3], resolved("chatml", chatml_like(END))) == body + END, "as the built-in template"
    opened = CHATML + "<|im_start|>assistant\n"
    assert render(TALK[1:3], resolved(opened, chatml_like("<|im_end|>"))) == body


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (CHATML + "<|im_start|>assistant\n", "<|im_start|>assistant"),
        (CHATML + "<|im_start|>user\n", "<|im_start|>user"),
        (CHATML + "That is all.", "That is all."),
        ("{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}Assistant:", "Assistant:"),
        ("{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}User:", "User:"),
    ],
)
@pytest.mark.parametrize("build", [lambda: chatml_like(END), bert_like])
def test_an_open_turn_without_end_token_is_refused(
    build: Callable[[], PreTrainedTokenizerFast], template: str, shown: str
) -> None:
    """Where no end token says where the reply ends, a template that writes more after it is refused, and the text is named."""
    with pytest.raises(DataError) as refused:
        resolved(template, build())
    assert str(refused.value).startswith("data.chat_template: ")
    assert shown in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }};{% endfor %}",
        "{% for m in messages %}[{{ m.content }}]\n{% endfor %}",
        "{% for m in messages %}{{ 'A: ' if m.role == 'assistant' else 'Q: ' }}{{ m.content }} ###\n{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if loop.last else '<|im_start|>' }}{% endfor %}",
        "{{ raise_exception('one exchange only') if messages | length > 2 }}{{ messages[0].content }} > {{ messages[1].content }} <",
        CHATML,
    ],
)
def test_ordinary_endings_are_kept(template: str) -> None:
    """Closing words, markers, and templates for one exchange: none of them opens a turn."""
    text = render(TALK[1:3], resolved(template, chatml_like(END)))
    assert text.endswith(END)
    assert "a1" in text


def test_a_template_without_the_reply_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data.chat_template: .*'first<\|endoftext\|>'"):
        resolved("{{ messages[0].content }}{{ eos_token }}")


FIXED = {
    "enable_thinking": False,
    "date_string": '1 Jan "it\'s" \U0001f600 %}',
    "documents": [{"title": "T", "n": None, "x": 1.5e-7}],
}


def test_fixed_variables_become_defaults() -> None:
    """They are part of the template, so that every consumer of the template has them; a caller's own values come first."""
    template = (
        "{% macro show() %}{{ enable_thinking }}|{{ date_string }}|{{ documents | tojson }}{% endmacro %}"
        "{% for m in messages %}{{ show() }}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    )
    tokenizer = byte_bpe()
    completed = resolve_template(template, tokenizer, FIXED)
    written = f'False|{FIXED["date_string"]}|[{{"title": "T", "n": null, "x": 1.5e-07}}]'
    assert tokenizer.apply_chat_template(list(TALK[1:3]), tokenize=False) == f"{written}q1{END}\n{written}a1{END}"
    own = tokenizer.apply_chat_template(list(TALK[1:3]), tokenize=False, enable_thinking=True)
    assert own == f"{written}q1{END}\n{written}a1{END}".replace("False", "True")
    for again in (FIXED, {}):
        assert resolve_template(completed, byte_bpe(), again) == completed, "an export is loaded with or without its recipe"


def test_unread_fixed_variables_are_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        resolve_template(
            "{% for m in messages %}{{ mood }}{{ m.content }}{% endfor %}", byte_bpe(), {"mod": 1, "mood": 2, "x": 3}
        )
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "data.chat_template_kwargs.mod",
        "data.chat_template_kwargs.x",
    ]
    assert all("mood" in problem for problem in refused.value.problems)


def test_templates_of_encoders_omit_special_tokens() -> None:
    for name in (
        "simple_concat",
        "zephyr",
        "{{ bos_token }}{{ messages[0].content }} {{ messages[1].content }}{{ eos_token }}{{ '\n' }}",
    ):
        text = render(TALK[1:3], resolved(name, roberta_like()))
        assert not text.startswith("<s>")
        assert not text.rstrip().endswith("</s>")
    assert render(TALK[1:3], resolved("simple_concat", bert_like())) == "q1 a1"


def test_trap_16_dates_are_frozen() -> None:
    template = (
        '{% if strftime_now is defined %}{% set today = strftime_now("%d %b %Y") %}{% endif %}'
        "{{ today }} {{ strftime_now('%Y-%m-%d') }}: {{ messages[1].content }}{{ eos_token }}"
    )
    tokenizer = resolved(template)
    text = render(TALK[1:3], tokenizer)
    assert text == f"26 Jul 2024 2024-07-26: a1{END}"
    tokenizer.chat_template = template
    assert date.today().isoformat() in render(TALK[1:3], tokenizer), "guard: the clock is read where it is not frozen"
    with pytest.raises(RecipeError, match=r"^data.chat_template: .*date"):
        freeze_dates("{{ strftime_now(format) }}")


def test_templates_from_files_and_tokenizers(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[-1].content }}!")
    assert render(TALK, resolved(str(file))) == f"a2!{END}"
    tokenizer = byte_bpe()
    tokenizer.chat_template = {"default": "{{ messages[-1].content }}?", "tool_use": "x"}
    assert render(TALK, resolved("tokenizer", tokenizer)) == f"a2?{END}"


CHOICES = "simple_concat, simple_chat, chatml, zephyr, tulu, a .jinja file, the template itself"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer", [CHOICES]),
        ("simple_cht", ['"simple_cht"', "simple_chat?"]),
        ("vicuna", ['"vicuna"', CHOICES]),
        ("mine.jinja", ["mine.jinja", CHOICES]),
        ("{{" + "x" * MAX_TEMPLATE_CHARACTERS, [str(MAX_TEMPLATE_CHARACTERS), "262146"]),
    ],
)
def test_trap_45_a_missing_template_names_the_choices(name: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        resolve_template(name, byte_bpe())
    message = str(error.value)
    assert message.startswith("data.chat_template: ")
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('system only') }}", r"^data.chat_template: .*TemplateError: system only$"),
        ("{{ lipsum.__globals__['os'].popen('touch canary') }}", r"^data.chat_template: .*SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", r"^data.chat_template: .*OverflowError"),
    ],
)
def test_a_failing_template_is_refused_at_once(
    template: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        resolve_template(template, byte_bpe())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tokenizer", "leading", "trailing", "end", "in_template"),
    [
        (byte_bpe(), [], [], "<|endoftext|>", True),
        (llama_like(), ["<s>"], [], "</s>", True),
        (unigram_like(), ["<s>"], [], "</s>", True),
        (bert_like(), ["[CLS]"], ["[SEP]"], "[SEP]", False),
        (roberta_like(), ["<s>"], ["</s>"], "</s>", False),
    ],
    ids=["gpt2", "llama", "unigram", "bert", "roberta"],
)
def test_edge_tokens_of_each_kind(
    tokenizer: PreTrainedTokenizerFast, leading: list[str], trailing: list[str], end: str, in_template: bool
) -> None:
    edges = edge_tokens(tokenizer)
    names = tokenizer.convert_ids_to_tokens
    assert (names(list(edges.leading)), names(list(edges.trailing)), names(edges.end)) == (leading, trailing, end)
    assert edges.in_template is in_template


def test_a_tokenizer_without_end_token_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"eos_token in its tokenizer_config.json"):
        edge_tokens(byte_bpe(pad_token="<|pad|>"))


def pad(tokenizer: PreTrainedTokenizerFast) -> str:
    return str(choose_pad_token(tokenizer, edge_tokens(tokenizer).end))


@pytest.mark.parametrize(
    ("special", "named", "expected"),
    [
        (["<e>", "<p>"], {"eos_token": "<e>", "pad_token": "<p>"}, "<p>"),
        (["<e>", "<|padding|>"], {"eos_token": "<e>", "pad_token": "<e>"}, "<|padding|>"),
        (["<e>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], {"eos_token": "<e>"}, "<|finetune_right_pad_id|>"),
        (
            ["<e>", "<u>", "<|reserved_special_token_0|>"],
            {"eos_token": "<e>", "unk_token": "<u>"},
            "<|reserved_special_token_0|>",
        ),
        (["<e>", "<u>"], {"eos_token": "<e>", "unk_token": "<u>", "pad_token": "<e>"}, "<u>"),
        (["<e>"], {"eos_token": "<e>", "unk_token": "<e>", "pad_token": "<e>"}, NEW_PAD_TOKEN),
        (["<e>", "<b>"], {"eos_token": "<e>", "bos_token": "<b>", "pad_token": "<b>"}, NEW_PAD_TOKEN),
        (["<e>"], {"eos_token": "<e>"}, NEW_PAD_TOKEN),
    ],
)
def test_trap_01_padding_is_never_an_end_token(special: list[str], named: dict[str, str], expected: str) -> None:
    assert pad(byte_bpe(special_tokens=special, **named)) == expected


def test_an_encoder_keeps_its_padding() -> None:
    assert pad(bert_like()) == "[PAD]"
    assert pad(roberta_like()) == "<pad>"


def test_an_ordinary_word_is_not_padding() -> None:
    tokenizer = byte_bpe(special_tokens=["<e>"], eos_token="<e>")
    tokenizer.add_tokens([AddedToken("notepad", special=False)])
    assert pad(tokenizer) == NEW_PAD_TOKEN
