"""Comparisons to a reward after every token, and where the rewards of two responses part.

The reward after a token is that of the text which ends there: without an end token, unless it is one. Training reads only the last one,
that of the end token. A causal model gives all of them in one forward, because a token sees only those before it: they are the output of
the head at each token. In an encoder a token sees those after it, so that each beginning of a text needs a forward of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from rmtrain.batching.layout import Layout, lay_out_every_token
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import TokenizedComparison, Tokens, common_prefix_length
from rmtrain.evaluation.scoring import ScoringPlan, TokenizedRows, score_micro_batches
from rmtrain.model.reward_model import evaluating, unwrap

TokenRewards = tuple[float | None, ...]
"""The reward after each token of a sequence, float32; None where it was not computed, before the end of an encoder's prompt."""


@dataclass(frozen=True, slots=True)
class TokenReader:
    """Computes rewards after every token.

    model: a RewardModel, prepared or not, whose attention is set for the layout.
    max_tokens: tokens of an encoder computed at once.
    """

    model: nn.Module
    layout: Layout
    pad_token_id: int
    max_tokens: int

    @property
    def reads_in_one_pass(self) -> bool:
        """True: a causal model. False: an encoder, for which each token is a forward."""
        return unwrap(self.model).pools_last_token

    def read(self, row: TokenizedComparison, check: Callable[[], None] | None = None) -> list[TokenRewards]:
        """Return the rewards of each response of a comparison. On several ranks of a sharded model, all have to read the same rows.

        `check` is called before each forward; it ends the work by raising.
        """
        if not self.reads_in_one_pass:
            return self._read_beginnings(row, check)
        if check is not None:
            check()
        batch, places = lay_out_every_token(row, self.pad_token_id, self.layout)
        with evaluating(self.model):
            rewards = self.model(batch.to(unwrap(self.model).device)).float().cpu().numpy()
        return [tuple(rewards[own].tolist()) for own in places]

    def _read_beginnings(self, row: TokenizedComparison, check: Callable[[], None] | None) -> list[TokenRewards]:
        """Score every beginning of each response, that of no token included, as a text of its own."""
        first = max(row.prompt_length, 1)
        rows = [
            replace(row, sequences=(sequence[:end],), prefix_length=0, preferences=(), targets=(), cut=())
            for sequence in row.sequences
            for end in range(first, len(sequence) + 1)
        ]
        data = TokenizedRows(rows)
        costs = Costs.of(data, self.layout)
        plan = ScoringPlan.of(data, self.layout, costs, max(self.max_tokens, int(costs.tokens.max())), self.pad_token_id)
        scored = score_micro_batches(self.model, plan, plan.micro_batches, unwrap(self.model).device, check)
        rewards = iter([scored[number].rewards[0] for number in range(len(rows))])
        return [(*[None] * (first - 1), *[next(rewards) for _ in range(first, len(sequence) + 1)]) for sequence in row.sequences]


def with_scores(rewards: Sequence[TokenRewards], scores: Sequence[float]) -> list[TokenRewards]:
    """Return the rewards after every token with the score of each response as its last: forwards that read other tokens round otherwise."""
    return [(*own[:-1], score) for own, score in zip(rewards, scores, strict=True)]


class Parting(NamedTuple):
    """Where two responses part, as numbers of tokens, from 0.

    tokens: the first token in which they differ, at most the last one of the shorter.
    rewards: from this token on, the one that wins in the end is ahead after each number of tokens; a response that has ended keeps its
        reward. None: both have the same reward in the end.
    """

    tokens: int
    rewards: int | None


def parting(sequences: Sequence[Tokens], rewards: Sequence[TokenRewards]) -> Parting:
    """Return where two responses part, given their tokens and the rewards after them."""
    tokens = common_prefix_length(sequences)
    length = max(map(len, rewards))
    ours, theirs = (np.array([*own, *[own[-1]] * (length - len(own))], np.float64) for own in rewards)
    sign = np.sign(ours[-1] - theirs[-1])
    if sign == 0:
        return Parting(tokens, None)
    others = np.flatnonzero(np.sign(ours[tokens:] - theirs[tokens:]) != sign)
    return Parting(tokens, tokens + (int(others[-1]) + 1 if len(others) else 0))
