"""Chat templates: the built-in ones, and the changes that make one safe to train on and to export.

A template is used, and exported with the model, only in its completed form:
1. dates are frozen, so that a text is the same tomorrow;
2. it begins with the fixed values of `data.chat_template_kwargs`, which a caller may still override;
3. each conversation begins with the tokens that the tokenizer puts there and ends in exactly one end token, with nothing after it.
So `apply_chat_template(conversation, tokenize=True)` of any consumer gives a decoder model exactly the tokens it was trained on.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message
from rmtrain.data.text.renderer import PROBE, QUESTION, REPLY, REPLY_TEXT, SHOWN_CHARACTERS, render_all, template_variables
from rmtrain.errors import DataError, RecipeError, missing
from rmtrain.files import expanded

NEW_PAD_TOKEN = "<|pad|>"
PAD_NAME = re.compile(r"pad", re.IGNORECASE)
SPARE_NAME = re.compile(r"reserved|unused", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EdgeTokens:
    """The special tokens around a text."""

    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    """Ids that `tokenizer(text)` adds before and after the text."""
    end: int
    """Id of the token that ends every response; the reward is read there."""
    in_template: bool
    """The chat template writes them, as for decoder models (`<s>` or nothing, then `</s>`); otherwise the tokenizer adds them to the text,
    as for encoder models (`[CLS]` and `[SEP]`)."""


def edge_tokens(tokenizer: PreTrainedTokenizerBase) -> EdgeTokens:
    """Return the edge tokens of a tokenizer; raises RecipeError where none could end a response."""
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

    It is the first that exists of: the tokenizer's padding token, another special token for padding, a reserved or unused one, the unknown
    token, and a new `<|pad|>`, for which the model's embeddings must grow.
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
NEXT_QUESTION = "third"
LONGER_PROBE: tuple[Message, ...] = (
    *PROBE,
    {"role": "user", "content": NEXT_QUESTION},
    {"role": "assistant", "content": "fourth"},
)

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


def resolve_template(chat_template: str, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None) -> str:
    """Complete a template for a tokenizer, and return it as well as set it as the tokenizer's `chat_template`.

    `chat_template` is a built-in name, `tokenizer` for its own, a path that ends in `.jinja`, or the template itself. `variables` are fixed
    values of template variables, which become its defaults.

    Raises:
        RecipeError: the template does not exist, is too long, or does not read one of the variables.
        DataError: it fails on a plain question and answer, loops, or does not end in one end token.
    """
    template = _find(chat_template, tokenizer)
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise RecipeError(f"data.chat_template: expected at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(template)}")
    defaults = "".join(
        f"{{% if {name} is not defined or {name} is none %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in (variables or {}).items()
    )
    template = freeze_dates(template).removeprefix(defaults)  # an exported template has its defaults already
    read = template_variables(template)
    unread = [name for name in variables or {} if name not in read]
    if unread:
        raise RecipeError(*(f"data.chat_template_kwargs.{name}: {unread_variable(name, read)}" for name in unread))
    tokenizer.chat_template = defaults + template
    edges = edge_tokens(tokenizer)
    tokenizer.chat_template = defaults + _completed(template, tokenizer, edges)
    _check_edges(tokenizer, edges)
    return str(tokenizer.chat_template)


def unread_variable(name: str, read: frozenset[str]) -> str:
    """Return the problem of a variable that is handed to a template that does not read it, only those in `read`."""
    others = f"it reads {', '.join(sorted(read))}" if read else "it reads no variable"
    return f"the chat template does not read {name}; {others}"


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
        path = expanded(name)
        if not path.is_file():
            raise RecipeError(f"data.chat_template: {missing(name)}; expected a file, or one of: {choices}")
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    near = difflib.get_close_matches(name, [*CHAT_TEMPLATES, "tokenizer"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {choices}"
    raise RecipeError(f'data.chat_template: "{name[:80]}" is not a template; {hint}')


def freeze_dates(template: str) -> str:
    """Return the template with the text of a fixed day for `strftime_now("...")`; raises RecipeError where the format is computed."""
    frozen = CLOCK_CALL.sub(lambda call: repr(TODAY.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise RecipeError(
            "data.chat_template: it computes a date format, so texts would change from day to day; write the format out"
        )
    return frozen


def _render_probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return render_all([PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0]


def _completed(template: str, tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """Return the template, changed to write the special tokens around a text once; where the tokenizer adds them, not at all.

    What it writes after the end token of the last reply is cut, since consumers of the model read the reward at the very end.
    """
    text, names = _render_probe(tokenizer), tokenizer.convert_ids_to_tokens
    *written, rest = REPLY_TEXT.split(text)
    if not written:
        raise DataError(f"data.chat_template: it does not write the reply, only {text[-40:]!r}; correct the template")
    end = names(edges.end) if edges.in_template else "".join(names(list(edges.trailing)))
    kept, has_end = rest, bool(end) and end in rest
    if has_end:
        kept = rest[: rest.index(end) + (len(end) if edges.in_template else 0)]
    elif edges.in_template:
        kept = rest.rstrip()
    if not has_end:
        _check_opens_no_turn(tokenizer, text, kept.rstrip())

    cut, adds_end = rest[len(kept) :], edges.in_template and not has_end
    result = f"(rendered[:-{len(cut)}] if rendered.endswith({cut!r}) else rendered)" if cut.strip() else "rendered.rstrip()"
    if cut:
        result += " + eos_token" if adds_end else ""
        body = template.removesuffix("\n")  # which jinja removes at the end of a template
        template = f"{{% set rendered %}}{body}{{% endset %}}{{{{ rendered if add_generation_prompt else {result} }}}}"
    elif adds_end:
        template = template.removesuffix("\n") + "{{ '' if add_generation_prompt else eos_token }}"

    start = "".join(names(list(edges.leading)))
    if edges.in_template and start and not text.startswith(start):
        template = "{{ bos_token }}" + template
    elif not edges.in_template and start and text.startswith(start):
        template = "{% set whole %}" + template + "{% endset %}{{ whole[" + str(len(start)) + ":] }}"
    return template


def _check_opens_no_turn(tokenizer: PreTrainedTokenizerBase, text: str, closing: str) -> None:
    """Raise DataError where `closing`, the end of the rendered probe, is more than the end of a reply.

    It is compared with the text between a reply and the next question: that begins with the end of the reply. A template that announces
    another reply differs from it; one that announces a question equals it.
    """
    if not closing.strip() or closing.strip() in tokenizer.get_added_vocab():
        return
    try:
        longer = render_all([LONGER_PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0].lower()
    except DataError:  # a template for one exchange only
        return
    _, reply, later = longer.rpartition(REPLY)
    between, question, _ = later.partition(NEXT_QUESTION)
    between = between.rstrip()
    if not reply or not question:  # a template that writes the last message only
        return
    before, announced = text.lower().partition(QUESTION)[::2]
    gap = announced.partition(REPLY)[0].strip()
    has_header = before.strip() not in ("", str(tokenizer.bos_token).lower()) and gap != between.strip()
    if not between.startswith(closing.lower()) or (between == closing.lower() and has_header):
        raise DataError(
            f"data.chat_template: it writes {closing[:SHOWN_CHARACTERS]!r} after the last reply, where the reward would be read; "
            "correct the template to end with the reply"
        )


def _check_edges(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> None:
    text = _render_probe(tokenizer)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    body = text.removesuffix(end) if edges.in_template else text
    if (edges.in_template and body == text) or body.rstrip().endswith(end):
        raise DataError(
            f"data.chat_template: a conversation must end in {end} once, but it ends in {text[-40:]!r}; correct the template"
        )
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos * 2):
        raise DataError(f"data.chat_template: it writes {bos} twice at the beginning; remove one from the template")
