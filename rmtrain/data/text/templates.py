"""Chat templates: the built-in ones, where others come from, and the changes that make a template safe to train on and to export.

A template is used, and exported with the model, only in its completed form:
1. dates are frozen, so that a text is the same tomorrow;
2. each conversation begins with the tokens that the tokenizer puts there and ends in exactly one end token, with nothing after it.
So `apply_chat_template(conversation, tokenize=True)` of any consumer gives a decoder model exactly the tokens it was trained on.
"""

import difflib
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message
from rmtrain.data.text.render import render_all
from rmtrain.errors import DataError, RecipeError

NEW_PAD_TOKEN = "<|pad|>"
PAD_NAME = re.compile(r"pad", re.IGNORECASE)
SPARE_NAME = re.compile(r"reserved|unused", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EdgeTokens:
    """The special tokens around a text.

    leading, trailing: ids that `tokenizer(text)` adds before and after the text.
    end: id of the token that ends every response; the reward is read there.
    in_template: whether the chat template writes them, as for decoder models (`<s>` or nothing, then `</s>`); otherwise the tokenizer
        adds them to the rendered text, as for encoder models (`[CLS]` and `[SEP]`).
    """

    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    end: int
    in_template: bool


def edge_tokens(tokenizer: PreTrainedTokenizerBase) -> EdgeTokens:
    """Return the edge tokens of a tokenizer, found by encoding a word with and without special tokens.

    Raises:
        RecipeError: the tokenizer has no token that could end a response.
    """
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    begin = next(start for start in range(len(whole) + 1) if whole[start : start + len(bare)] == bare)
    leading, trailing = tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
    end = trailing[-1] if trailing else tokenizer.eos_token_id
    if end is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end token; set eos_token in its tokenizer_config.json, "
            "or use another tokenizer"
        )
    return EdgeTokens(leading, trailing, end, in_template=not trailing and leading in ((), (tokenizer.bos_token_id,)))


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, end: int) -> Any:
    """Return the token to pad with, never one that ends a response: transformers reads the reward at the last token that is not padding.

    The first that exists of: the tokenizer's own padding token, another special token for padding, a reserved or unused one, the unknown
    token. Otherwise a new `<|pad|>`, for which the model's embeddings must grow.
    """
    ends = {end, tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token
    spare = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special and index not in ends}
    for pattern in (PAD_NAME, SPARE_NAME):
        for name in spare:
            if pattern.search(name):
                return name
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in ends:
        return tokenizer.unk_token
    return NEW_PAD_TOKEN


MAX_TEMPLATE_CHARACTERS = 256 * 1024
PROBE_SECONDS = 2.0
TODAY = datetime(2024, 7, 26)
"""The date inside every template; Llama 3's template uses the same one when it is given no clock."""
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
    """Return the text of `data.chat_template`, completed for this tokenizer, and set it as the tokenizer's `chat_template`.

    Args:
        chat_template: a built-in name, `tokenizer`, a path that ends in `.jinja`, or the template itself.
        tokenizer: provides its own template, and the special tokens around a text.

    Raises:
        RecipeError: the template does not exist or is too long.
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
    choices = ", ".join([*CHAT_TEMPLATES, "a .jinja file", "the template itself"])
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if name == "tokenizer":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own is None:
            raise RecipeError(f"data.chat_template: the tokenizer has no chat template; set one of: {choices}")
        return str(own)
    if name.endswith(".jinja"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"data.chat_template: {name} does not exist; expected a file, or one of: {choices}")
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    near = difflib.get_close_matches(name, [*CHAT_TEMPLATES, "tokenizer"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {choices}"
    raise RecipeError(f'data.chat_template: "{name[:80]}" is not a template; {hint}')


def freeze_dates(template: str) -> str:
    """Return the template with every `strftime_now("...")` replaced by the text of a fixed day.

    Raises:
        RecipeError: the template computes the format of a date.
    """
    frozen = CLOCK_CALL.sub(lambda call: repr(TODAY.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise RecipeError(
            "data.chat_template: it computes a date format, so texts would change from day to day; write the format out"
        )
    return frozen


def _probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return render_all([PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0]


def _completed(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """Return the template, extended to write the special tokens around a text that it does not write yet."""
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
    """Return the template without the special tokens around a text, which the tokenizer adds."""
    text, template = _probe(tokenizer), str(tokenizer.chat_template)
    start, end = ("".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in (edges.leading, edges.trailing))
    if end and text.rstrip().endswith(end):
        template = _wrapped(template, f"rendered.rstrip()[:-{len(end)}]")
    if start and text.startswith(start):
        template = "{% set whole %}" + template + "{% endset %}{{ whole[" + str(len(start)) + ":] }}"
    return template


def _wrapped(template: str, result: str) -> str:
    return "{% set rendered %}" + template + "{% endset %}{{ rendered if add_generation_prompt else " + result + " }}"


def _check_edges(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> None:
    text = _probe(tokenizer)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    body = text.removesuffix(end) if edges.in_template else text
    if (edges.in_template and body == text) or body.rstrip().endswith(end):
        raise DataError(
            f"data.chat_template: a conversation must end in {end} once, but it ends in {text[-40:]!r}; correct the template"
        )
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos * 2):
        raise DataError(f"data.chat_template: it writes {bos} twice at the beginning; remove one from the template")
