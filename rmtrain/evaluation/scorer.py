"""A reward model from Python, also a reward function for TRL's trainers: conversations in, rewards out; and lines of `rmtrain score`."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from json import JSONDecoder
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import BadRow, Comparison, Message, TokenizedComparison, Turns
from rmtrain.data.rows.messages import TOOLS, kind_of, to_messages, tool_definitions
from rmtrain.data.rows.readers import Line, Malformed, parse
from rmtrain.data.text.encoder import Encoder, LengthPolicy
from rmtrain.data.text.renderer import template_variables
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.scoring import ScoringPlan, TokenizedRows, score_micro_batches
from rmtrain.evaluation.token_rewards import TokenReader, TokenRewards, with_scores
from rmtrain.model.export_dir import golden_texts
from rmtrain.model.layout_probe import choose_layout
from rmtrain.model.reward_model import computing_type
from rmtrain.model.saved_model import load_reward_model, model_of, template_hash
from rmtrain.recipe.schema import Messages, Precision
from rmtrain.recipe.sources import variable_problem

Overlong = Literal["error", "cut"]
MAX_TOKENS = 16384
CALLS = "call scorer([prompt], [reply]) or scorer.score([messages])"
TextOrMessages = str | Message | Sequence[Message]
"""A response or a prompt: text, a message, or messages."""


class RewardScorer:
    """Scores conversations as `rmtrain eval` does: the raw logit at the last token, float32, never rounded.

    Consecutive responses to the same prompt share its tokens, which are computed once.

    Args:
        path: directory or Hub id of a reward model, or of an adapter; or the directory of a finished run.
        device: where it computes; None: a GPU where there is one.
        precision: of matrix products; `auto` is bfloat16 on a GPU, float16 on one without it, else float32. The head is always float32.
        max_length: longest sequence in tokens; None: the number of positions of the model.
        overlong: handling of longer sequences: `error`, or `cut`, which removes tokens from the beginning of the conversation.
        max_tokens: tokens computed at once; a prompt whose responses have more is computed alone.
        revision: commit, tag or branch of a Hub model.
        allow_template_change: load a model whose chat template is no longer the one it was trained with.

    Raises:
        CheckpointError: see `load_reward_model`. RecipeError: no template.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        max_length: int | None = None,
        overlong: Overlong = "error",
        max_tokens: int = MAX_TOKENS,
        revision: str | None = None,
        allow_template_change: bool = False,
    ) -> None:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        path = model_of(str(path))
        self.model, loaded = load_reward_model(path, chosen, revision=revision, allow_template_change=allow_template_change)
        self.path, self.pad_token_id, self.max_tokens = path, int(loaded.pad_token_id), max_tokens
        self.tokenizer = prepared(loaded, "tokenizer")
        self.model.computing = computing_type(precision, chosen)
        self.limit = LengthPolicy(max_length or self.model.declared_positions, overlong=overlong)
        self.encoder = Encoder(self.tokenizer, self.limit)
        self.variables = template_variables(str(self.tokenizer.chat_template))
        self.layout: Layout | None = None
        self.__name__ = "rmtrain_reward"  # TRL logs a reward function under its name

    @property
    def settings(self) -> dict[str, Any]:
        """Settings, in addition to the weights, that rewards depend on."""
        return {
            "dtype": self.model.computing,
            "max_length": self.limit.max_length,
            "overlong": self.limit.overlong,
            "template_sha256": template_hash(self.tokenizer),
        }

    def score(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[float]:
        """Return the reward of each conversation; its messages end with the reply to score.

        Args:
            conversations: messages of each.
            tools: tools of each, a list of definitions or None; ignored by a model whose chat template does not read them.
            chat_template_kwargs: further variables of the chat template for each, such as `{"documents": [...]}`.

        Raises:
            DataError: this is a text or a single conversation; a conversation does not end with the assistant's turn, is refused by the
                template, or is too long.
            NumericError: a reward is not finite.
        """
        _check_list(conversations, "conversations")
        first: Any = next(iter(conversations), None)
        if isinstance(first, Mapping) and "role" in first:
            raise DataError(f"conversations: expected a list of conversations, got one conversation; {CALLS}")
        for number, messages in enumerate(conversations):
            _check_list(messages, f"conversation {number}")
        checked = [
            turns(list(messages), f"conversation {number}", "user", ends_with_reply=True)
            for number, messages in enumerate(conversations)
        ]
        variables = self._variables(len(checked), tools, chat_template_kwargs)
        return self._score_groups([messages[:-1] for messages in checked], [messages[-1:] for messages in checked], variables)

    def __call__(
        self,
        prompts: Sequence[TextOrMessages],
        completions: Sequence[TextOrMessages],
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Return the reward of each completion of its prompt. TRL's GRPOTrainer and RLOOTrainer call this as a reward function.

        Args:
            prompts: texts, or lists of messages, one for each completion.
            completions: texts, which may be empty, or lists of messages.
            tools: column of the dataset, see `score`.
            chat_template_kwargs: column of the dataset, see `score`.
            _: further columns of the dataset and the state of the trainer, which are ignored.
        """
        _check_list(prompts, "prompts")
        _check_list(completions, "completions")
        asked = [turns(prompt, f"prompts[{number}]", "user") for number, prompt in enumerate(prompts)]
        replies = [turns(reply, f"completions[{number}]", "assistant") for number, reply in enumerate(completions)]
        return self._score_groups(asked, replies, self._variables(len(asked), tools, chat_template_kwargs))

    def choose_layout(self, rows: Sequence[TokenizedComparison]) -> Layout:
        """Return the layout of everything that is scored; the first call probes it with these rows and two golden conversations."""
        if self.layout is None:
            by_length = sorted(rows, key=lambda row: max(map(len, row.sequences)))
            places = sorted({0, len(rows) // 2, len(rows) - 1}) if rows else []
            # Two golden conversations as if they answered one prompt, so that even a lone row probes sharing.
            sequences = [ids for _, ids in golden_texts(self.tokenizer, self.limit.max_length or MAX_TOKENS)[:2]]
            shared = sequences[0][: len(sequences[0]) // 2]
            sharing = tuple([*shared, *sequence[len(sequence) // 2 :]] for sequence in sequences)
            golden = TokenizedComparison("golden conversation", "", sharing, max(0, len(shared) - 1), 0, ())
            probes = [*(by_length[place] for place in places), golden]
            self.layout = choose_layout(self.model, "auto", probes, self.pad_token_id)
        return self.layout

    def plan(self, rows: Sequence[TokenizedComparison]) -> ScoringPlan:
        """Cut rows, at least one, into micro-batches."""
        layout, data = self.choose_layout(rows), TokenizedRows(rows)
        costs = Costs.of(data, layout)
        return ScoringPlan.of(data, layout, costs, max(self.max_tokens, int(costs.tokens.max())), self.pad_token_id)

    def rewards(self, rows: Sequence[TokenizedComparison], check: Callable[[], None] | None = None) -> list[tuple[float, ...]]:
        """Return the rewards of each row's responses, float32, by this process alone; raises NumericError where one is not finite.

        `check` is called before each micro-batch; it ends the work by raising.
        """
        if not rows:
            return []
        plan = self.plan(rows)
        scored = score_micro_batches(self.model, plan, plan.micro_batches, self.model.device, check)
        rewards = [scored[number].rewards for number in range(len(rows))]
        for row, of_row in zip(rows, rewards, strict=True):
            if not all(map(math.isfinite, of_row)):
                raise NumericError(f"{row.id}: a reward is not finite: {list(of_row)}; score in float32")
        return rewards

    def token_rewards(self, row: TokenizedComparison, check: Callable[[], None] | None = None) -> list[TokenRewards]:
        """Return the rewards after every token of a row's responses, see `TokenReader`; the last of each is its score, to the last bit.

        Raises NumericError where one is not finite.
        """
        reader = TokenReader(self.model, self.choose_layout([row]), self.pad_token_id, self.max_tokens)
        rewards = with_scores(reader.read(row, check), self.rewards([row], check)[0])
        for of_response in rewards:
            place = next((place for place, reward in enumerate(of_response) if not math.isfinite(reward or 0.0)), None)
            if place is not None:
                raise NumericError(
                    f"{row.id}: the reward after token {place} is not finite: {of_response[place]}; score in float32"
                )
        return rewards

    def score_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[list[int], TokenRewards]:
        """Return the tokens of a conversation, and the reward after each: that of the conversation cut there, without an end token.

        Only the last one, which `score` returns, is trained. An encoder computes a forward for each token. Show them with
        `visualize_tokens`. See `score` for arguments and errors.
        """
        _check_list(messages, "messages")
        turned = turns(list(messages), "messages", "user", ends_with_reply=True)
        (variables,) = self._variables(1, [tools], [chat_template_kwargs])
        request = Comparison("messages", "", turned[:-1], (turned[-1:],), (), variables=variables)
        ((row,), _) = self.encoder.encode_for_scoring([request])
        return [int(token) for token in row.sequences[0]], self.token_rewards(row)[0]

    def _variables(self, count: int, tools: Sequence[Any] | None, kwargs: Sequence[Any] | None) -> list[dict[str, Any]]:
        tools = tools if TOOLS in self.variables else None
        for name, given in ((TOOLS, tools), (KWARGS, kwargs)):
            if given is not None and len(given) != count:
                raise DataError(f"expected {name} for each of {count} conversations, got {len(given)}")
        pairs = zip(tools or [None] * count, kwargs or [None] * count, strict=True)
        return [variables_of(*pair, f"conversation {number}") for number, pair in enumerate(pairs)]

    def _score_groups(
        self, prompts: Sequence[Turns], responses: Sequence[Turns], variables: Sequence[dict[str, Any]]
    ) -> list[float]:
        """Score consecutive responses to the same prompt as one row, so that its tokens are computed once."""
        if len(prompts) != len(responses):
            raise DataError(f"expected a prompt for each response, got {len(prompts)} and {len(responses)}")
        rows: list[Comparison] = []
        begin = 0
        for (prompt, its), group in groupby(zip(prompts, variables, responses, strict=True), key=itemgetter(0, 1)):
            replies = tuple(reply for _, _, reply in group)
            rows.append(Comparison(f"conversation {begin}", "", prompt, replies, (), variables=its))
            begin += len(replies)
        comparisons, _ = self.encoder.encode_for_scoring(rows)
        return [reward for rewards in self.rewards(comparisons) for reward in rewards]


def _check_list(values: Any, name: str) -> None:
    """Raise DataError for a text or a mapping in place of a list: its characters or keys would be taken for the items."""
    if isinstance(values, str | Mapping):
        kind = (
            "a text" if isinstance(values, str) else "one message" if "role" in values else f"keys {', '.join(map(str, values))}"
        )
        raise DataError(f"{name}: expected a list, got {kind}; {CALLS}")


def turns(value: Any, name: str, role: str, *, ends_with_reply: bool = False) -> Turns:
    """Return text or messages as messages. A text of the user may be an HH transcript up to `Assistant:`; a reply may be any text.

    Raises DataError, naming the value, where it is neither, or should end with the assistant's reply and does not.
    """
    if role == "assistant" and isinstance(value, str):  # a policy may write nothing, a transcript, or messages as JSON
        return ({"role": role, "content": value},)
    settings = Messages(transcript="hh") if role == "user" else Messages()
    try:
        messages = to_messages(value, name, settings, role)
    except BadRow as problem:
        raise DataError(f"{name}: {problem.detail}") from None
    is_open = isinstance(value, str) and messages[-1:] == ({"role": "assistant", "content": ""},)
    if is_open:
        messages = messages[:-1]
    if ends_with_reply and (not messages or messages[-1]["role"] != "assistant"):
        ending = f"the {messages[-1]['role']}'s turn" if messages else "no turn"
        raise DataError(f"{name}: ends with {ending}; end it with the assistant's reply")
    return messages


def variables_of(tools: Any, kwargs: Any, name: str) -> dict[str, Any]:
    """Return the template variables of a conversation: its tools, and others by name; raises DataError, naming the wrong one."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise DataError(f"{name}: {KWARGS} is {kind_of(kwargs)}; expected an object")
    values = dict(kwargs or {})
    for key in values:
        if problem := variable_problem(str(key)):
            raise DataError(f"{name}: {KWARGS}.{key}: {problem}")
    try:
        definitions = tool_definitions(tools, f"{name}: {TOOLS}")
    except BadRow as problem:
        raise DataError(problem.detail) from None
    return values if definitions is None else {**values, TOOLS: definitions}


ONE, SEVERAL = ("response", "completion"), ("responses", "completions")
CONVERSATION, KWARGS = "messages", "chat_template_kwargs"
WRITTEN = ("reward", "rewards", "best", "input_line", "truncated")
"""Keys that scoring adds to a line."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A line of the input: its number, its text, the request to score, and the key of its responses where it has several."""

    number: int
    text: str
    request: Comparison
    several: str | None


def parse_input(line: Line | Malformed, number: int, variables: Set[str] = frozenset({TOOLS})) -> InputRow:
    """Parse a line to score.

    It has `messages` that end with the assistant's turn, or `prompt` and one of `response`, `completion`, `responses`, `completions`;
    prompts and responses are texts or messages. `tools` and `chat_template_kwargs` are variables of the chat template, which reads
    `variables`.

    Raises:
        DataError: the line is neither; one problem, which begins with the file and the line number.
    """
    if isinstance(line, Malformed):
        raise DataError(line.detail)
    row, where, text = parse(line), line.where, line.content.decode(errors="replace")
    if isinstance(row, Malformed):
        raise DataError(row.detail)
    taken = [key for key in WRITTEN if key in row]
    if taken:
        raise DataError(f"{where}: {', '.join(taken)}: rmtrain score writes this key itself; rename it")

    values = variables_of(row.get(TOOLS) if TOOLS in variables else None, row.get(KWARGS), where)
    if CONVERSATION in row:
        messages = turns(row[CONVERSATION], f"{where}: {CONVERSATION}", "user", ends_with_reply=True)
        return InputRow(number, text.strip(), Comparison(where, "", messages[:-1], (messages[-1:],), (), variables=values), None)

    keys = [key for key in (*ONE, *SEVERAL) if key in row]
    if "prompt" not in row or len(keys) != 1:
        expected = f"{CONVERSATION}, or prompt and one of {', '.join((*ONE, *SEVERAL))}"
        raise DataError(f"{where}: expected {expected}; it has: {', '.join(map(str, row)) or 'nothing'}")
    (key,) = keys
    prompt = turns(row["prompt"], f"{where}: prompt", "user")
    if key in ONE:
        replies = {key: row[key]}
    elif isinstance(row[key], list) and row[key]:
        replies = {f"{key}[{place}]": value for place, value in enumerate(row[key])}
    else:
        raise DataError(f"{where}: {key}: expected a list of one or more responses")
    responses = tuple(turns(value, f"{where}: {name}", "assistant", ends_with_reply=True) for name, value in replies.items())
    request = Comparison(where, "", prompt, responses, (), variables=values)
    return InputRow(number, text.strip(), request, key if key in SEVERAL else None)


def format_response(line: InputRow, rewards: Sequence[float], is_cut: bool, best_of: bool) -> str:
    """Return a line of the output: the keys of the input, then `reward`, or `rewards` in the order of the responses, and `input_line`.

    With `is_cut` it has `truncated`. With `best_of`, the best of several responses (the first of equal ones) replaces them as `response`,
    with its `reward` and number `best`. Values of the input stay as they are written, such as a number that no float64 holds.
    """
    row = dict(_parts(line.text))
    written: dict[str, Any] = {}
    if line.several is None:
        written["reward"] = rewards[0]
    elif best_of:
        best = max(range(len(rewards)), key=rewards.__getitem__)
        row["response"] = [text for _, text in _parts(row.pop(line.several))][best]
        written = {"reward": rewards[best], "best": best, "rewards": list(rewards)}
    else:
        written["rewards"] = list(rewards)
    if is_cut:
        written["truncated"] = True
    row |= {key: json.dumps(value, allow_nan=False) for key, value in {**written, "input_line": line.number}.items()}
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in row.items()) + "}\n"


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Yield the members of a JSON object or array that is valid, as they are written, after their keys, which are empty in an array."""

    def skip_space(position: int) -> int:
        while text[position] in " \t\r\n":
            position += 1
        return position

    decoder, position = JSONDecoder(), skip_space(1)
    while text[position] not in "]}":
        key = ""
        if text[0] == "{":
            key, position = decoder.raw_decode(text, position)
            position = skip_space(skip_space(position) + 1)
        end = decoder.raw_decode(text, position)[1]
        yield key, text[position:end]
        position = skip_space(end)
        position = skip_space(position + 1) if text[position] == "," else position
