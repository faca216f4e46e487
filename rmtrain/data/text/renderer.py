"""Conversations as text under a tokenizer's chat template and its variables; and where their responses begin and end in it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from operator import itemgetter

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import BadRow, Comparison, Message, Turns
from rmtrain.data.rows.messages import CALL, THOUGHTS
from rmtrain.data.text.template_process import Conversation, Variables, apply_template
from rmtrain.errors import DataError

MAX_TEXT_CHARACTERS = 16 * 2**20
MAX_SECONDS = 60.0
BATCH = 64
"""Conversations that are rendered together, so that few of them are in memory twice."""
CALL_PROBE = "tool-call-probe"
QUESTION, REPLY = "first", "second"
PROBE: tuple[Message, ...] = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": REPLY})
REPLY_TEXT = re.compile(REPLY, re.IGNORECASE)  # a template may write it in upper case
SHOWN_CHARACTERS = 60
GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""Tags that only transformers has; they mark the replies, and read no variable."""


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """Return the text of a conversation; see `render_all`."""
    return render_all([conversation], tokenizer, ["conversation"], add_generation_prompt)[0]


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[str],
    add_generation_prompt: bool = False,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Return the text of each conversation; raises DataError as `try_render` does, and, with the row id, where the template fails."""
    texts = []
    for text, row_id in zip(try_render(conversations, tokenizer, ids, None, add_generation_prompt, seconds), ids, strict=True):
        if isinstance(text, BadRow):
            raise DataError(f"{row_id}: {text.detail}") from text
        texts.append(text)
    return texts


def try_render(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[str],
    variables: Sequence[Variables] | None = None,
    add_generation_prompt: bool = False,
    seconds: float = MAX_SECONDS,
) -> list[str | BadRow]:
    """Return the text of each conversation under the tokenizer's chat template, in a sandbox and a process of its own.

    Args:
        conversations: messages of each.
        tokenizer: its `chat_template` renders them.
        ids: row id of each, for errors.
        variables: template variables of each; None: none.
        add_generation_prompt: add the text that announces a reply.
        seconds: time of all together.

    Returns:
        the text, or, where the template fails on a conversation, `template_refused` with the words of the template.

    Raises:
        DataError: the template takes too long, or, with the row id, writes too much.
        TryAgain: the process that renders was killed.
    """
    texts: list[str | BadRow] = []
    end = time.monotonic() + seconds
    pairs = zip(conversations, variables or [{}] * len(conversations), ids, strict=True)
    for given, group in groupby(pairs, key=itemgetter(1)):
        while batch := list(islice(group, BATCH)):
            limits = MAX_TEXT_CHARACTERS, max(0.0, end - time.monotonic())
            try:
                rendered = apply_template(tokenizer, [turns for turns, _, _ in batch], given, add_generation_prompt, *limits)
            except TimeoutError as error:
                raise DataError(
                    f"the chat template ran for more than {seconds:g} seconds; check it for an endless loop"
                ) from error
            for text, (_, _, row_id) in zip(rendered, batch, strict=True):
                if isinstance(text, int):
                    allowed = f"at most {MAX_TEXT_CHARACTERS} are allowed"
                    raise DataError(f"{row_id}: the chat template wrote {text} characters, {allowed}")
                texts.append(text)
    return texts


def template_variables(template: str) -> frozenset[str]:
    """Return the variables that a chat template reads, such as `tools`, without the messages and special tokens that all have.

    A name that the template sets itself counts only if it has a default, as in `tools is defined` or `tools or []`: others hold what one
    branch computes for another. Empty for a template that is not valid: rendering it says why.
    """
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(GENERATION.sub("", template))
        for constant in tree.find_all(nodes.Const):
            constant.value = None  # jinja2 would compute with constants, however large
        undeclared = meta.find_undeclared_variables(tree)
    except (TemplateSyntaxError, RecursionError):
        return frozenset()
    tested = [test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined", "none")]
    tested += [default.node for default in tree.find_all(nodes.Filter) if default.name == "default" and default.node is not None]
    tested += [either.left for either in tree.find_all(nodes.Or)]
    by_use: dict[str, set[str]] = {"load": set(), "store": set(), "param": set()}
    for name in tree.find_all(nodes.Name):
        by_use[name.ctx].add(name.name)
    own = by_use["store"] - ({node.name for node in tested if isinstance(node, nodes.Name)} - by_use["param"])
    names = undeclared - own - {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
    return frozenset(name for name in names if not name.endswith("_token"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A comparison as text."""

    texts: Sequence[str]
    """The whole conversation of each response; of one that the template refused, an end token alone."""
    begin: tuple[int, int] | None = None
    """Number of a response, and the position where its own text begins; None: no response was found in its conversation."""
    rewritten: tuple[int, ...] = ()
    """Numbers of the responses that do not appear unchanged."""
    hidden: Mapping[int, str] = field(default_factory=dict)
    """By number of a response, the key of a message that the template does not write, such as `tool_calls`."""
    faults: Mapping[int, BadRow] = field(default_factory=dict)
    """By number of a response, why it has no reward: the template refused it, or does not end with it."""


class Renderer:
    """Renders comparisons under a tokenizer's chat template, and locates the responses in the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def render(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        """Return the texts of each comparison; raises DataError as `try_render` does."""
        texts = iter(self._try([(row, (*row.prompt, *response)) for row in comparisons for response in row.responses]))
        prompts = iter(self._try([(row, row.prompt) for row in comparisons if row.prompt], add_generation_prompt=True))
        return [
            self._located(row, [next(texts) for _ in row.responses], next(prompts) if row.prompt else "") for row in comparisons
        ]

    def complete(self, text: str) -> str:
        """Return a text that is rendered already with the begin and the end that the chat template writes, each of them once."""
        ended = text.rstrip()
        if self._closing.rstrip() and ended.endswith(self._closing.rstrip()):
            text = ended
        # In whole tokens: a reply that ends with "<" does not begin "</s>".
        offsets = self.tokenizer(self._closing, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        written = max(end for end in (0, *(end for _, end in offsets)) if text.endswith(self._closing[:end]))
        return ("" if text.startswith(self._begin) else self._begin) + text + self._closing[written:]

    def _try(self, conversations: Sequence[tuple[Comparison, Turns]], add_generation_prompt: bool = False) -> list[str | BadRow]:
        return try_render(
            [turns for _, turns in conversations],
            self.tokenizer,
            [row.id for row, _ in conversations],
            [row.variables for row, _ in conversations],
            add_generation_prompt,
        )

    def _located(self, row: Comparison, rendered: Sequence[str | BadRow], prompt: str | BadRow) -> Rendered:
        faults = {number: text for number, text in enumerate(rendered) if isinstance(text, BadRow)}
        if isinstance(prompt, BadRow):
            faults, prompt = dict.fromkeys(range(len(rendered)), prompt), ""
        texts, first, rewritten = list[str](), None, list[int]()
        for number, (response, text) in enumerate(zip(row.responses, rendered, strict=True)):
            if number in faults or isinstance(text, BadRow):
                texts.append(str(self.tokenizer.eos_token or ""))
                continue
            texts.append(text)
            place = _find_response(response, text, prompt)
            if place is None:
                rewritten.append(number)
            elif first is None:
                first = number, place[0]
            if problem := self._ending_fault(response[-1], text, None if place is None else place[1]):
                faults[number] = problem
        return Rendered(texts, first, tuple(rewritten), self._hidden(row, texts), faults)

    def _ending_fault(self, reply: Message, text: str, end: int | None) -> BadRow | None:
        """Return what the template writes after a reply, other than what it writes after every reply.

        `end` is where the reply ends in the text; None: it was rewritten.
        """
        content, body = reply["content"].strip(), text.removesuffix(self._closing)
        ends_well = text.endswith(self._closing)
        if ends_well and not content and CALL not in reply and not self._writes_empty_replies:
            return BadRow("hidden_by_template", "the chat template leaves out a reply that is empty")
        if ends_well and (end is None or CALL in reply or body.rstrip().endswith(content)):
            return None
        shown = "more" if end is None else repr(text[end : end + SHOWN_CHARACTERS])
        return BadRow("text_after_reply", f"the chat template writes {shown} after the reply, not only {self._closing!r}")

    @cached_property
    def _begin(self) -> str:
        """The special token that every conversation begins with, as text; empty where there is none."""
        first = str(self.tokenizer.bos_token or "")
        return first if render(PROBE, self.tokenizer).startswith(first) else ""

    @cached_property
    def _closing(self) -> str:
        """The text after a reply, up to the end."""
        return REPLY_TEXT.split(render(PROBE, self.tokenizer))[-1]

    @cached_property
    def _writes_empty_replies(self) -> bool:
        """Whether an empty reply is written like any other, rather than left out with its role."""
        texts = render_all([PROBE, (PROBE[0], PROBE[1] | {"content": ""})], self.tokenizer, ["data.chat_template"] * 2)
        one, other = ("".join(REPLY_TEXT.sub("", text).split()) for text in texts)
        return one == other

    def _hidden(self, row: Comparison, texts: Sequence[str]) -> dict[int, str]:
        if all(len(message) == 2 for messages in (row.prompt, *row.responses) for message in messages):
            return {}
        hidden = {}
        for number, (response, text) in enumerate(zip(row.responses, texts, strict=True)):
            if any(CALL in message for message in (*row.prompt, *response)) and not self._writes_calls:
                hidden[number] = CALL
            # Thoughts of the prompt may be missing: templates leave out those of earlier turns when the model is served as well.
            for key in THOUGHTS:
                if any(message.get(key, "").strip() not in text for message in response):
                    hidden[number] = key
        return hidden

    @cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes the name, the argument names and the values of a tool call."""
        call = {"type": "function", "id": "callprobe", "function": {"name": CALL_PROBE, "arguments": {CALL_PROBE: CALL_PROBE}}}
        calling = {"role": "assistant", "content": "", CALL: [call]}
        try:
            text = render([{"role": "user", "content": "call it"}, calling], self.tokenizer)
        except DataError:
            return False
        return text.count(CALL_PROBE) >= 3


def _find_response(response: Conversation, text: str, prompt: str) -> tuple[int, int] | None:
    """Return where a response begins in the text, thoughts included, and where the content of its last message ends.

    None if the text does not have all of its messages unchanged. The space around a message does not count: most templates trim it.
    The search starts after the prompt, which may contain the response.
    """
    position = len(prompt)
    if not text.startswith(prompt):
        pairs = enumerate(zip(prompt, text, strict=False))
        position = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(text)))
    begin: int | None = None
    for message in response:
        content = message["content"].strip()
        at = text.find(content, position)
        if at < 0:
            return None
        if begin is None:
            thoughts = [text.find(message[key].strip(), position) for key in THOUGHTS if key in message]
            begin = min([at, *(place for place in thoughts if place >= 0)])
        position = at + len(content)
    return None if begin is None else (begin, position)
