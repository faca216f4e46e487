"""Chat templates: the built-in ones, where others come from, and what makes a template safe to train on and to export.

A template is used only in its completed form, which is also what is exported with the model:
1. dates are frozen, so that a text is the same tomorrow;
2. each conversation begins with what the tokenizer would put there and ends in exactly one end token, with nothing after it.
So `apply_chat_template(conversation, tokenize=True)` of any consumer gives a decoder model the very tokens it was trained on.
"""

import difflib
import re
from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message
from rmtrain.data.text.render import render_all
from rmtrain.data.text.special_tokens import EdgeTokens, edge_tokens
from rmtrain.errors import DataError, RecipeError

MAX_TEMPLATE_CHARACTERS = 256 * 1024
PROBE_SECONDS = 2.0
TODAY = datetime(2024, 7, 26)
"""The day it always is inside a template; Llama 3's own choice where no clock is at hand."""
CLOCK_CALL = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
PROBE: tuple[Message, ...] = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "second"})

CHAT_TEMPLATES = {
    # messages joined by a space (TRL's dataset_processor)
    "simple_concat": (
        "{% for message in messages %}"
        "{{ ' ' if not loop.first else '' }}{{ message['content'] }}"
        "{% endfor %}"
        "{{ '' if add_generation_prompt else eos_token }}"
    ),
    # "User: ...", blank line, "Assistant: ..." (TRL's dataset_processor)
    "simple_chat": (
        "{% for message in messages %}"
        "{{ '\n\n' if not loop.first else '' }}{{ message['role'] | capitalize + ': ' + message['content'] }}"
        "{% endfor %}"
        "{{ '\n\nAssistant:' if add_generation_prompt else eos_token }}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% elif eos_token != '<|im_end|>' %}{{ eos_token }}{% endif %}"
    ),
    # an end token after every message
    "zephyr": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] }}{{ eos_token }}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
    ),
    # an end token after every reply (open-instruct)
    "tulu": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
    ),
}


def resolve_template(chat_template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `data.chat_template`, completed for this tokenizer.

    Args:
        chat_template: a built-in name, `tokenizer`, a path that ends in `.jinja`, or the template itself.
        tokenizer: gives its own template, and what stands at the edges of a text. Its `chat_template` is set to the result.

    Raises:
        RecipeError: there is no such template, or it is too long.
        DataError: it fails on a plain question and answer, loops, or does not end in one end token.
    """
    template = _find(chat_template, tokenizer)
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise RecipeError(f"data.chat_template: expected at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(template)}")
    tokenizer.chat_template = freeze_dates(template)
    edges = edge_tokens(tokenizer)
    tokenizer.chat_template = _completed(tokenizer, edges) if edges.in_template else _stripped(tokenizer, edges)
    _check_edges(tokenizer, edges)
    return str(tokenizer.chat_template)


def _find(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if name == "tokenizer":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own is None:
            raise RecipeError(f"data.chat_template: the tokenizer has no chat template; name one: {_choices()}")
        return str(own)
    if name.endswith(".jinja"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"data.chat_template: {name} is not there")
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    near = difflib.get_close_matches(name, [*CHAT_TEMPLATES, "tokenizer"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {_choices()}"
    raise RecipeError(f'data.chat_template: "{name[:80]}" is no template; {hint}')


def _choices() -> str:
    return ", ".join([*CHAT_TEMPLATES, "a .jinja file", "the template itself"])


def freeze_dates(template: str) -> str:
    """The template with every `strftime_now("...")` replaced by a fixed day's text.

    Raises:
        RecipeError: it computes the format of a date.
    """
    frozen = CLOCK_CALL.sub(lambda call: repr(TODAY.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise RecipeError("data.chat_template: it computes a date format, so texts would change from day to day; write it out")
    return frozen


def _probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return render_all([PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0]


def _completed(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """The template, writing what stands at the edges of a text where it does not yet."""
    text, template = _probe(tokenizer), str(tokenizer.chat_template)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    if text.rstrip() != text and text.rstrip().endswith(end):
        template = _wrapped(template, "rendered.rstrip()")
    elif not text.endswith(end):
        template = template.removesuffix("\n") + "{{ '' if add_generation_prompt else eos_token }}"
    if edges.leading and not text.startswith(str(tokenizer.bos_token)):
        template = "{{ bos_token }}" + template
    return template


def _stripped(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """The template, without the tokens at the edges of a text that the tokenizer adds itself."""
    text, template = _probe(tokenizer), str(tokenizer.chat_template)
    start, end = (_text_of(tokenizer, ids) for ids in (edges.leading, edges.trailing))
    if end and text.rstrip().endswith(end):
        template = _wrapped(template, f"rendered.rstrip()[:-{len(end)}]")
    if start and text.startswith(start):
        template = "{% set whole %}" + template + "{% endset %}{{ whole[" + str(len(start)) + ":] }}"
    return template


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _wrapped(template: str, result: str) -> str:
    return "{% set rendered %}" + template + "{% endset %}{{ rendered if add_generation_prompt else " + result + " }}"


def _check_edges(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> None:
    text = _probe(tokenizer)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    body = text.removesuffix(end) if edges.in_template else text
    if (edges.in_template and body == text) or body.rstrip().endswith(end):
        raise DataError(f"data.chat_template: a conversation must end in {end} once, but it ends in {text[-40:]!r}")
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos * 2):
        raise DataError(f"data.chat_template: it writes {bos} twice at the beginning")
