"""The one render-and-encode function: what is trained on, evaluated and scored goes through here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jinja2 import Environment, TemplateSyntaxError, nodes
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import (
    BadRow,
    Comparison,
    Dropped,
    Message,
    TokenizedComparison,
    Tokens,
    common_prefix_length,
    dropped,
    rows_of,
)
from rmtrain.data.rows.messages import CALL, THOUGHTS
from rmtrain.data.rows.responses import Checked, without
from rmtrain.data.text.templates import Conversation, EdgeTokens, check_size, edge_tokens, render, render_all
from rmtrain.data.text.token_pieces import Encoded, Texts, encode_texts, text_encoder
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

MARK = re.compile(r"\x00(\d+)\x00")
LOOP_NUMBERS = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
STATEMENTS = (nodes.Output, nodes.For, nodes.If, nodes.Assign, nodes.Continue, nodes.Break)


@dataclass(frozen=True, slots=True)
class Form:
    """A conversation without its contents: the texts before, between and after them, one more than there are messages."""

    around: tuple[str, ...]

    def text(self, contents: Sequence[str]) -> str:
        """The conversation with these contents."""
        return "".join([part for pair in zip(self.around, [*contents, ""], strict=True) for part in pair])

    def position(self, contents: Sequence[str]) -> int:
        """Where the content that follows these begins in the text."""
        return sum(map(len, self.around[: len(contents) + 1])) + sum(map(len, contents))


def marked(number: int) -> str:
    """What stands for the content of a message while a form is made."""
    return f"\x00{number}\x00"


def form_of(text: str, messages: int) -> Form | None:
    """The form of a conversation with marked contents; None where a content is not written once, and in turn."""
    parts = MARK.split(text)
    return Form(tuple(parts[::2])) if parts[1::2] == [str(number) for number in range(messages)] else None


def writes_contents_as_they_are(template: str) -> bool:
    """Whether all that a template does with the content of a message is to write it.

    Told from the syntax: `message.content` stands only where it is written, alone or added to other text, and messages are only looped
    over, counted, indexed, and asked for their role and content. No block is captured, so what is written stays. In doubt it is False.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:
        return False
    return all(isinstance(node, STATEMENTS) for node in tree.find_all(nodes.Stmt)) and _Uses(tree).are_plain()


class _Uses:
    """How the names of a template are used."""

    def __init__(self, tree: nodes.Template) -> None:
        self.names = list(tree.find_all(nodes.Name))
        self.parents = {id(child): node for node in tree.find_all(nodes.Node) for child in node.iter_child_nodes()}
        outputs = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
        self.written = {id(node) for part in outputs for node in _written(part)}
        loops = [loop for loop in tree.find_all(nodes.For) if _is_name(loop.iter, "messages")]
        self.messages = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}

    def are_plain(self) -> bool:
        return all(self._is_plain(name, self.parents[id(name)]) for name in self.names)

    def _is_plain(self, name: nodes.Name, parent: nodes.Node) -> bool:
        if name.name == "loop":
            return isinstance(parent, nodes.Getattr) and parent.attr in LOOP_NUMBERS
        if name.name == "messages":
            return (
                (isinstance(parent, nodes.For) and parent.iter is name and isinstance(parent.target, nodes.Name))
                or (isinstance(parent, nodes.Filter) and parent.name in ("length", "count"))
                or (isinstance(parent, nodes.Getitem) and _is_index(parent.arg) and self._is_field(parent))
            )
        if name.name in self.messages:
            return (
                isinstance(parent, nodes.For) and parent.target is name and _is_name(parent.iter, "messages")
            ) or self._is_field(name)
        return True

    def _is_field(self, message: nodes.Node) -> bool:
        """Whether a message is asked for its role, or for its content in order to write it."""
        access = self.parents[id(message)]
        if isinstance(access, nodes.Getattr):
            field = access.attr
        elif isinstance(access, nodes.Getitem) and access.node is message and isinstance(access.arg, nodes.Const):
            field = access.arg.value
        else:
            return False
        return field == "role" or (field == "content" and id(access) in self.written)


def _written(node: nodes.Node) -> Iterator[nodes.Node]:
    """The parts of an expression that are written as they are, one after the other."""
    if isinstance(node, nodes.Concat):
        parts = node.nodes
    elif isinstance(node, nodes.Add):
        parts = [node.left, node.right]
    elif isinstance(node, nodes.CondExpr):
        parts = [part for part in (node.expr1, node.expr2) if part is not None]
    else:
        yield node
        return
    for part in parts:
        yield from _written(part)


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_index(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const))


def overlong(row: TokenizedComparison, data: Data, leading: int) -> dict[int, BadRow]:
    """Responses that no policy keeps, by number: `too_long`, or, where the prompt may be cut, `response_too_long`.

    Args:
        row: the comparison.
        data: the limits and the policy.
        leading: special tokens at the beginning of a sequence, such as `<s>`, which stay.
    """
    faults = {}
    for number, sequence in enumerate(row.sequences):
        excess = len(sequence) - data.max_length
        if excess > 0 and data.overlong != "truncate_prompt_left":
            faults[number] = BadRow("too_long", f"{len(sequence)} tokens, over max_length {data.max_length}")
        elif excess > row.prompt_length - leading:
            own = len(sequence) - row.prompt_length
            faults[number] = BadRow("response_too_long", f"response of {own} tokens alone is over max_length {data.max_length}")
    return faults


def fit_prompt(row: TokenizedComparison, data: Data, leading: int) -> TokenizedComparison:
    """The comparison within `data.max_length` and `data.max_prompt_length`, none of its responses being `overlong`.

    Under `truncate_prompt_left` the same tokens are cut from the beginning of the prompt for every response, so that the prefix stays
    shared and the responses stay different. What was cut may end in the middle of a message.

    Raises:
        BadRow: `prompt_too_long`, where the prompt may not be cut.
    """
    excess = max(map(len, row.sequences)) - data.max_length
    prompt_excess = row.prompt_length - data.max_prompt_length if data.max_prompt_length is not None else 0
    cut = min(max(excess, prompt_excess), row.prompt_length - leading)
    if cut <= 0:
        return row
    if data.overlong != "truncate_prompt_left":
        raise BadRow("prompt_too_long", f"prompt of {row.prompt_length} tokens, over max_prompt_length {data.max_prompt_length}")
    return replace(
        row,
        sequences=tuple(np.delete(sequence, slice(leading, leading + cut)) for sequence in row.sequences),
        prefix_length=row.prefix_length - cut,
        prompt_length=row.prompt_length - cut,
    )


PROBE = "tool-call-probe"
PROBE_CALL = {"type": "function", "id": "callprobe", "function": {"name": PROBE, "arguments": {PROBE: PROBE}}}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A comparison as text.

    rewritten: responses that the template rewrote: they are not in their text as they were.
    hidden: for responses that lack something the template does not show, what it is: a key of a message, such as `tool_calls`.
    """

    texts: Texts
    rewritten: tuple[int, ...] = ()
    hidden: Mapping[int, str] = field(default_factory=dict)


class Renderer:
    """Renders comparisons under a tokenizer's chat template.

    A template that writes contents as they are is run once for each sequence of roles that occurs, any other for each conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.is_verbatim = writes_contents_as_they_are(str(tokenizer.chat_template))
        self._forms: dict[tuple[str, ...], Form | None] = {}

    def render(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        """The texts of each comparison; raises DataError as `render_all` does."""
        filled = [self._fill(row) for row in comparisons]
        run = iter(self._run([row for row, rendered in zip(comparisons, filled, strict=True) if rendered is None]))
        return [next(run) if rendered is None else rendered for rendered in filled]

    def _fill(self, row: Comparison) -> Rendered | None:
        """The forms of the row with its contents; None where it has none."""
        if not self.is_verbatim:
            return None
        texts, begins = [], []
        roles, contents = ([message[key] for message in row.prompt] for key in ("role", "content"))
        for response in row.responses:
            form = self._form((*roles, *[message["role"] for message in response]), row.id)
            if form is None:
                return None
            own = [message["content"] for message in response]
            text = form.text([*contents, *own])
            check_size(text, row.id)
            texts.append(text)
            begins.append(form.position(contents) + len(own[0]) - len(own[0].lstrip()))
        return Rendered(Texts(texts, (0, begins[0])), hidden=self._hidden(row, texts))

    def _form(self, roles: tuple[str, ...], row_id: str) -> Form | None:
        if roles not in self._forms:
            messages = [{"role": role, "content": marked(number)} for number, role in enumerate(roles)]
            (text,) = render_all([messages], self.tokenizer, [row_id])
            self._forms[roles] = form_of(text, len(roles))
        return self._forms[roles]

    def _run(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        conversations = [(*row.prompt, *response) for row in comparisons for response in row.responses]
        texts = iter(render_all(conversations, self.tokenizer, [row.id for row in comparisons for _ in row.responses]))
        prompted = [row for row in comparisons if row.prompt]
        prompts = iter(render_all([row.prompt for row in prompted], self.tokenizer, [row.id for row in prompted], True))
        rendered = []
        for row in comparisons:
            whole = [next(texts) for _ in row.responses]
            prompt = next(prompts) if row.prompt else ""
            begins = [
                _begin_of(response, text, _shared(prompt, text)) for response, text in zip(row.responses, whole, strict=True)
            ]
            found = [(number, begin) for number, begin in enumerate(begins) if begin is not None]
            rewritten = tuple(number for number, begin in enumerate(begins) if begin is None)
            rendered.append(Rendered(Texts(whole, found[0] if found else None), rewritten, self._hidden(row, whole)))
        return rendered

    def _hidden(self, row: Comparison, texts: Sequence[str]) -> dict[int, str]:
        """Responses of which the template does not show all, and what. The thoughts of earlier turns, which templates leave out when they
        serve too, may be missing."""
        if all(len(message) == 2 for messages in (row.prompt, *row.responses) for message in messages):
            return {}
        hidden = {}
        for number, (response, text) in enumerate(zip(row.responses, texts, strict=True)):
            if any(CALL in message for message in (*row.prompt, *response)) and not self.shows_calls:
                hidden[number] = CALL
            for key in THOUGHTS:
                if any(message.get(key, "").strip() not in text for message in response):
                    hidden[number] = key
        return hidden

    @cached_property
    def shows_calls(self) -> bool:
        """Whether the template writes the name and the arguments of a call of a tool."""
        if self.is_verbatim:
            return False
        calling = {"role": "assistant", "content": "", CALL: [PROBE_CALL]}
        try:
            text = render([{"role": "user", "content": "call it"}, calling], self.tokenizer)
        except DataError:
            return False
        return text.count(PROBE) >= 3


def _shared(prompt: str, text: str) -> int:
    """Characters that both begin with."""
    if text.startswith(prompt):
        return len(prompt)
    low, high = 0, min(len(prompt), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[:middle] == text[:middle] else (low, middle - 1)
    return low


def _begin_of(response: Sequence[Message], text: str, position: int) -> int | None:
    """Where the response begins in the text after `position`; None if a message is not there as it was, save the space around it."""
    begin: int | None = None
    for message in response:
        content = message["content"].strip()
        at = text.find(content, position)
        if at < 0:
            return None
        if begin is None:
            begin = min([at, *(place for place in _thoughts(message, text, position) if place >= 0)])
        position = at + len(content)
    return begin


def _thoughts(message: Message, text: str, position: int) -> list[int]:
    """Where thoughts of a message stand in the text after `position`; -1: nowhere."""
    return [text.find(message[key].strip(), position) for key in THOUGHTS if key in message]


NAMED_ROWS = 5
REWRITTEN = "the chat template changes the text of a response"
HIDDEN = "the chat template does not write what a message has in"


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, ids: Sequence[str] | None = None
) -> list[list[int]]:
    """The tokens of whole conversations, each ending in its end token; no length limit.

    Args:
        conversations: messages, ending with a reply.
        tokenizer: one that `load_tokenizer` gave.
        ids: row ids for errors; None: their numbers.
    """
    texts = render_all(conversations, tokenizer, ids or [f"conversation {number}" for number in range(len(conversations))])
    return list(encode_texts(texts, tokenizer, edge_tokens(tokenizer))["input_ids"]) if texts else []


def encode_comparisons(
    comparisons: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase, data: Data
) -> list[TokenizedComparison | Dropped]:
    """The tokens of each comparison, or why it is dropped; see `Encoder`. Rows that a comparison lost follow it."""
    checked = Encoder(tokenizer, data).encode(comparisons)
    return [item for row in checked for item in (row.row, *row.lost) if item is not None]


class Encoder:
    """Comparisons to tokens. What it has seen makes it faster and never changes what it gives.

    Args:
        tokenizer: one that `load_tokenizer` gave.
        data: length policy, and whether a template may rewrite responses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        self.tokenizer, self.data = tokenizer, data
        self.renderer, self.texts, self.edges = Renderer(tokenizer), text_encoder(tokenizer), edge_tokens(tokenizer)

    def encode(self, comparisons: Sequence[Comparison]) -> list[Checked]:
        """The tokens of each comparison with the responses that stay, in the order given.

        `prompt_length` counts the tokens before the first token of a response's own text: the rendered prompt and what announces a
        reply.

        Args:
            comparisons: a batch, some hundreds to thousands: its texts are encoded in one call.

        Raises:
            DataError: the template fails on a row, or `overlong: error` and rows are too long.
        """
        rendered = self.renderer.render(comparisons)
        encoded = self.texts.encode([row.texts for row in rendered])
        rows = [self._row(*parts) for parts in zip(comparisons, rendered, encoded, strict=True)]
        return self._checked(rows, self.data)

    def check(self, rows: Sequence[TokenizedComparison]) -> list[Checked]:
        """Hold rows that came as tokens to the end token, to different responses and to the length policy.

        Raises:
            DataError: `overlong: error` and rows are too long.
        """
        as_they_are = {"max_prompt_length": None, "overlong": "error" if self.data.overlong == "error" else "drop"}
        vocabulary = len(self.tokenizer)
        unknown = [_unknown(row.sequences, vocabulary) for row in rows]
        return self._checked(list(zip(rows, unknown, strict=True)), self.data.model_copy(update=as_they_are))

    def _row(self, row: Comparison, rendered: Rendered, encoded: Encoded) -> tuple[TokenizedComparison, dict[int, BadRow]]:
        sequences = tuple(encoded.sequences)
        prefix = common_prefix_length(sequences)
        prompt = prefix if encoded.begin is None else min(encoded.begin, prefix)
        faults = {} if self.data.allow_rewritten else {k: BadRow("rewritten_by_template", REWRITTEN) for k in rendered.rewritten}
        faults |= {k: BadRow("hidden_by_template", f"{HIDDEN} {key}") for k, key in rendered.hidden.items()}
        return TokenizedComparison(row.id, row.source, sequences, prefix, prompt, row.preferences), faults

    def _checked(self, rows: Sequence[tuple[TokenizedComparison, dict[int, BadRow]]], data: Data) -> list[Checked]:
        checked = [_checked(row, faults, self.edges, data) for row, faults in rows]
        if data.overlong == "error":
            _refuse_overlong([lost for row in checked for lost in row.lost])
        return checked


def _unknown(sequences: Sequence[Tokens], vocabulary: int) -> dict[int, BadRow]:
    highest = {number: max(sequence) for number, sequence in enumerate(sequences)}
    return {
        number: BadRow("unknown_token", f"token {token} is not among the {vocabulary} of the tokenizer")
        for number, token in highest.items()
        if token >= vocabulary
    }


def _checked(row: TokenizedComparison, faults: dict[int, BadRow], edges: EdgeTokens, data: Data) -> Checked:
    first = row.sequences[0]
    leading = len(edges.leading) if tuple(first[: len(edges.leading)]) == edges.leading else 0
    checked = without(row, {**overlong(row, data, leading), **_without_one_end(row.sequences, edges.end), **faults})
    if checked.row is None:
        return checked
    try:
        fitting = fit_prompt(checked.row, data, leading)
    except BadRow as problem:
        return Checked(None, lost=tuple(dropped(row_id, row.source, problem) for row_id in rows_of(row)))
    return checked if fitting is checked.row else replace(checked, row=fitting)


def _without_one_end(sequences: Sequence[Tokens], end: int) -> dict[int, BadRow]:
    faults = {}
    for number, sequence in enumerate(sequences):
        if sequence[-1] != end:
            faults[number] = BadRow("missing_end_token", f"the last token is {sequence[-1]}, not the end token {end}")
        elif len(sequence) > 1 and sequence[-2] == end:
            faults[number] = BadRow("double_end_token", "a response ends in two end tokens")
    return faults


def _refuse_overlong(rows: Sequence[Dropped]) -> None:
    refused = [row for row in rows if row.reason in ("too_long", "prompt_too_long")]
    if refused:
        named = "; ".join(f"{row.id}: {row.detail}" for row in refused[:NAMED_ROWS])
        more = f" and {len(refused) - NAMED_ROWS} more" if len(refused) > NAMED_ROWS else ""
        raise DataError(f"data.overlong is error, and rows are too long: {named}{more}")
