"""A reward model from Python: conversations in, rewards out. Also a reward function for TRL's trainers."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs, Indices
from rmtrain.data.comparison import BadRow, Comparison, Message, TokenizedComparison, Turns
from rmtrain.data.rows.messages import to_messages
from rmtrain.data.text.tokenize import Encoder, LengthPolicy
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError, NumericError, RecipeError
from rmtrain.evaluation.score import Rows, rewards_of, scoring_micro_batches
from rmtrain.model.export import golden_texts
from rmtrain.model.layout_probe import choose_layout
from rmtrain.model.load import load_reward_model, template_hash
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Messages

Overlong = Literal["error", "cut"]
MAX_TOKENS = 16384
Precision = Literal["auto", "float32", "bfloat16"]
Answer = str | Message | Sequence[Message]
"""A response, or a prompt: text, a message, or messages."""


class RewardScorer:
    """Scores conversations as `rmtrain eval` does: the raw logit at the last token, float32, never rounded.

    Responses to one prompt that follow each other share its tokens, which are computed once.

    Args:
        path: directory or Hub id of a reward model, or of an adapter.
        device: where it computes; None: a GPU where there is one.
        precision: of matrix products; `auto` is bfloat16 on a GPU that has it, else float32. The head is float32 always.
        max_length: longest sequence in tokens; None: what the model's positions hold.
        overlong: what becomes of a longer one: an error, or `cut`, which takes tokens away from the beginning of the conversation.
        max_tokens: tokens computed at once; a prompt whose responses have more is computed alone.
        revision: commit, tag or branch of a Hub model.
        allow_template_change: load a model whose chat template is no longer the one it was trained with.

    Raises:
        CheckpointError: as `load_reward_model` says. RecipeError: no fast tokenizer, or no template.
    """

    def __init__(
        self,
        path: str,
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
        self.model, loaded = load_reward_model(path, chosen, revision=revision, allow_template_change=allow_template_change)
        self.path, self.pad_token_id, self.max_tokens = path, int(loaded.pad_token_id), max_tokens
        if not loaded.is_fast:
            raise RecipeError(f"{path} has a slow tokenizer only; add a tokenizer.json to it, or take another model")
        self.tokenizer = prepared(loaded, "tokenizer")
        self.model.autocast = precision == "bfloat16" or (precision == "auto" and has_bfloat16(chosen))
        self.limit = LengthPolicy(max_length or longest_sequence(self.model), overlong=overlong)
        self.encoder = Encoder(self.tokenizer, self.limit)
        self.layout: Layout | None = None
        self.__name__ = "rmtrain_reward"

    @property
    def settings(self) -> dict[str, Any]:
        """What the rewards depend on beside the weights."""
        return {
            "dtype": "bfloat16" if self.model.autocast else "float32",
            "max_length": self.limit.max_length,
            "overlong": self.limit.overlong,
            "template_sha256": template_hash(self.tokenizer),
        }

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """The reward of each conversation, in the order given.

        Args:
            conversations: messages, each ending with the reply to score.

        Raises:
            DataError: a conversation that does not end with the assistant's turn, that the template refuses, or that is too long.
            NumericError: a reward that is not finite.
        """
        checked = [_conversation(messages, number) for number, messages in enumerate(conversations)]
        return self._in_groups([messages[:-1] for messages in checked], [messages[-1:] for messages in checked])

    def __call__(self, prompts: Sequence[Answer], completions: Sequence[Answer], **_: Any) -> list[float]:
        """The reward of each completion of its prompt: what TRL's GRPOTrainer and RLOOTrainer call a reward function.

        Args:
            prompts: texts, or lists of messages, one for each completion.
            completions: texts, or lists of messages.
            _: further columns of the dataset and the state of the trainer, which do not matter.
        """
        asked = [turns(prompt, f"prompts[{number}]", "user") for number, prompt in enumerate(prompts)]
        answers = [turns(answer, f"completions[{number}]", "assistant") for number, answer in enumerate(completions)]
        return self._in_groups(asked, answers)

    def encode(self, rows: Sequence[Comparison]) -> tuple[list[TokenizedComparison], list[bool]]:
        """Return the tokens of rows, and which of them were cut; raises DataError as `Encoder.encode_for_scoring` does."""
        return self.encoder.encode_for_scoring(rows)

    def choose_layout(self, rows: Sequence[TokenizedComparison]) -> Layout:
        """The layout of everything that is scored: the first time it is probed with these rows, and with a prompt of ours."""
        if self.layout is None:
            probes = [*(Rows(rows).for_probing() if rows else ()), self._golden()]
            self.layout = choose_layout(self.model, "auto", probes, self.pad_token_id)
        return self.layout

    def rewards(self, rows: Sequence[TokenizedComparison]) -> list[tuple[float, ...]]:
        """The rewards of each row's responses, float32 values; raises NumericError naming a row with one that is not finite."""
        if not rows:
            return []
        layout, data, micro_batches = self.micro_batches(rows)
        found = rewards_of(self.model, data, micro_batches, layout, self.model.device, self.pad_token_id)
        return finite(data.ids, [found[number] for number in range(len(data))])

    def micro_batches(self, rows: Sequence[TokenizedComparison]) -> tuple[Layout, Rows, tuple[Indices, ...]]:
        """The layout of rows, with their lengths, and as numbers in micro-batches; whoever shares them cuts them so, too.

        Args:
            rows: at least one.
        """
        layout, data = self.choose_layout(rows), Rows(rows)
        budget = max(self.max_tokens, int(Costs.of(data, layout).tokens.max()))
        return layout, data, scoring_micro_batches(data, layout, budget)

    def _in_groups(self, prompts: Sequence[Turns], responses: Sequence[Turns]) -> list[float]:
        if len(prompts) != len(responses):
            raise DataError(f"expected a prompt for each response, got {len(prompts)} and {len(responses)}")
        rows = [
            Comparison(f"conversation {members[0][0]}", "", prompt, tuple(response for _, (_, response) in members), ())
            for prompt, members in (
                (prompt, list(group))
                for prompt, group in groupby(enumerate(zip(prompts, responses, strict=True)), lambda numbered: numbered[1][0])
            )
        ]
        comparisons, _ = self.encode(rows)
        return [reward for rewards in self.rewards(comparisons) for reward in rewards]

    def _golden(self) -> TokenizedComparison:
        """Conversations of ours as if they were responses to one prompt: they share what the template begins with, or a token of theirs."""
        sequences = [ids for _, ids in golden_texts(self.tokenizer, self.limit.max_length or MAX_TOKENS)[:2]]
        first = sequences[0]
        shared = [*first[: len(first) // 2]]
        ours = tuple([*shared, *sequence[len(sequence) // 2 :]] for sequence in sequences)
        return TokenizedComparison("a conversation of ours", "", ours, max(0, len(shared) - 1), 0, ())


def finite(ids: Sequence[str], rewards: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The same rewards; raises NumericError naming the first row with one that is not finite."""
    for row_id, found in zip(ids, rewards, strict=True):
        if not all(map(math.isfinite, found)):
            raise NumericError(f"{row_id}: a reward is not finite: {list(found)}; score it in float32")
    return rewards


def has_bfloat16(device: torch.device) -> bool:
    """Whether `precision: auto` computes in bfloat16 there."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def longest_sequence(model: RewardModel) -> int | None:
    """Tokens that the model's positions hold; None where it knows no limit."""
    declared = getattr(model.core.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (model.longest, declared) if isinstance(limit, int) and limit > 0]
    return min(limits, default=None)


def turns(value: Any, name: str, role: str) -> Turns:
    """Text or messages as messages; raises DataError, naming it, where it is neither.

    A text of the user may be an HH transcript up to `Assistant:`.
    """
    settings = Messages(transcript="hh") if role == "user" else Messages()
    try:
        messages = to_messages(value, name, settings, role)
    except BadRow as problem:
        raise DataError(f"{name}: {problem.detail}") from None
    is_open = isinstance(value, str) and messages[-1:] == ({"role": "assistant", "content": ""},)
    return messages[:-1] if is_open else messages


def _conversation(messages: Sequence[Message], number: int) -> Turns:
    name = f"conversation {number}"
    return ending_with_reply(turns(list(messages), name, "user"), name)


def ending_with_reply(messages: Turns, name: str) -> Turns:
    """The same messages; raises DataError, naming them, where the last is not the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        ending = f"the turn of the {messages[-1]['role']}" if messages else "no turn"
        raise DataError(f"{name} ends with {ending}; expected the assistant's reply")
    return messages
