"""Tokens to tensors: the memory layout of the comparisons of one micro-batch.

A comparison has the token sequences s_1 .. s_K, whose first p tokens are equal.

1. `shared_prefix`: one run of p + sum(len_k - p) tokens: the prefix at positions 0 .. p-1, then the rest of each response at positions
   p .. len_k-1. The runs are concatenated into a single row, without padding and without computing a token twice.
2. `packed`: the same with p = 0: whole sequences, concatenated into a single row. Encoders can be packed, but share no prefix, since a
   token of a prompt sees the response.
3. `padded`: one row per sequence, padded on the right. The rows are sorted by length and computed in blocks, each padded to its own
   longest row, so that at most a tenth of what is computed is padding.

Equal sequences of a comparison are laid out once, so that their rewards are equal to the last bit.

Two pairs, [a b c D] against [a b E F], and [x G] against [x H I], as `shared_prefix`:

    tokens     a b c D E F x G H I
    positions  0 1 2 3 2 3 0 1 1 2
    read at          *   *   *   *

Tensor legend: R rows, T tokens of a row, N responses of the micro-batch, S distinct sequences, E preferences (edges), M targets.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmtrain.data.comparison import Preference, Target, TokenizedComparison, Tokens

Layout = Literal["shared_prefix", "packed", "padded"]
MOST_PADDING = 0.1
"""Largest share of padding in a block of padded rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The boundaries within a single row, comparison by comparison. Attention needs nothing else.

    prefixes: length of each comparison's prefix, 0 when nothing is shared.
    responses: number of tokens after the prefix, for each distinct sequence of each comparison.
    read_at_N: int64, the only positions that the last layer has to compute; None: all.
    rows_SL: int64, the token at each place of padded rows, which the last layer returns in place of the single row; None: it does not.
    causal: a token sees only itself and those before it; False: its whole sequence (encoders).
    memo: values that attention derives from the boundaries, shared by all layers.
    """

    prefixes: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    read_at_N: Tensor | None = None
    rows_SL: Tensor | None = None
    causal: bool = True
    memo: dict[Any, Any] = field(default_factory=dict)

    def padded_rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `rows_SL`, and the mask [S, L] of real tokens, int64, of sequences that share nothing."""
        if "padded_rows" not in self.memo:
            lengths = [length for of_comparison in self.responses for length in of_comparison]
            lengths_S, places_L = torch.tensor(lengths, device=device), torch.arange(max(lengths), device=device)
            mask_SL = places_L < lengths_S[:, None]
            starts_S = lengths_S.cumsum(0) - lengths_S
            self.memo["padded_rows"] = torch.where(mask_SL, starts_S[:, None] + places_L, 0), mask_SL.long()
        rows: tuple[Tensor, Tensor] = self.memo["padded_rows"]
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class LabelBatch:
    """Preferences among the N responses of some comparisons, and targets for them: the part of a `MicroBatch` that an objective reads.

    sources: tag of each comparison's source.
    comparison_N: int64, the comparison of each response, numbered from 0 in order.
    winner_E, loser_E: int64, indices into the responses.
    margin_E, probability_E: float. A probability is that of the winner being better; 0.5 is a tie.
    weight_E: float, the edge's weight divided by the sum of weights of its comparison, times the weight of the comparison.
    response_M: int64, index into the responses. target_M: float, what its reward should be.
    target_weight_M: float, as `weight_E`: the labels of a comparison together have its weight, usually 1.
    """

    sources: tuple[str, ...]
    comparison_N: Tensor
    winner_E: Tensor
    loser_E: Tensor
    margin_E: Tensor
    probability_E: Tensor
    weight_E: Tensor
    response_M: Tensor
    target_M: Tensor
    target_weight_M: Tensor

    def only(self, chosen: Container[str], inside: bool = True) -> Self:
        """Return the same labels with weights of zero for all but the chosen sources, or with `inside` false for these."""
        counts = [float((source in chosen) == inside) for source in self.sources]
        counts_C = torch.tensor(counts, dtype=self.weight_E.dtype).to(self.weight_E.device)
        return replace(
            self,
            weight_E=self.weight_E * counts_C[self.comparison_N[self.winner_E]],
            target_weight_M=self.target_weight_M * counts_C[self.comparison_N[self.response_M]],
        )


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch(LabelBatch):
    """Input of the model and of the objective for some comparisons. Responses keep the order of their comparisons.

    input_ids_RT, position_ids_RT: int64. attention_mask_RT: int64, 1 on real tokens; None for a single row.
    segments: boundaries within the single row; None when padded.
    blocks: (first row, row after the last, tokens of the longest) of each block of padded rows; empty for a single row.
    reward_row_S, reward_column_S: int64, the place of each distinct sequence's last real token.
    sequence_N: int64, the sequence of each response; equal sequences of a comparison have the same number.
    ids: row ids of the comparisons. response_counts: responses of each comparison. tokens: real tokens that are computed.
    """

    input_ids_RT: Tensor
    attention_mask_RT: Tensor | None
    position_ids_RT: Tensor
    segments: Segments | None
    blocks: tuple[tuple[int, int, int], ...]
    reward_row_S: Tensor
    reward_column_S: Tensor
    sequence_N: Tensor
    ids: tuple[str, ...]
    response_counts: tuple[int, ...]
    tokens: int

    def rectangles(self) -> list[Self]:
        """Return the parts that are computed one after the other: each block of padded rows, or the single row. Their sequences in turn
        are those of the micro-batch."""
        if not self.blocks:
            return [self]
        return [
            replace(
                self,
                input_ids_RT=self.input_ids_RT[first:end, :longest],
                attention_mask_RT=None if self.attention_mask_RT is None else self.attention_mask_RT[first:end, :longest],
                position_ids_RT=self.position_ids_RT[first:end, :longest],
                reward_row_S=self.reward_row_S[: end - first],
                reward_column_S=self.reward_column_S[first:end],
                blocks=(),
            )
            for first, end, longest in self.blocks
        ]

    def to(self, device: torch.device) -> Self:
        """Return the same micro-batch with its tensors on `device`."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{**values, **moved})


def lay_out(comparisons: Sequence[TokenizedComparison], pad_token_id: int, layout: Layout = "padded") -> MicroBatch:
    """Lay out at least one comparison as a micro-batch on the CPU; `pad_token_id` is never attended to."""
    distinct, numbers = [], []
    first = 0
    for comparison in comparisons:
        keys = [np.asarray(sequence, dtype=np.int64).tobytes() for sequence in comparison.sequences]
        sequences = dict(zip(keys, comparison.sequences, strict=True))
        place = {key: first + number for number, key in enumerate(sequences)}
        numbers += [place[key] for key in keys]
        distinct.append(list(sequences.values()))
        first += len(sequences)
    shares = layout == "shared_prefix"
    prefixes = [row.prefix_length if shares and len(row.sequences) > 1 else 0 for row in comparisons]
    if layout == "padded":
        by_length, tensors = _padded(distinct, pad_token_id)
        rows = np.argsort(by_length)
        numbers = [int(rows[number]) for number in numbers]
    else:
        tensors = _single_row(distinct, prefixes)
    counts = [len(comparison.sequences) for comparison in comparisons]
    return MicroBatch(
        **tensors,
        **label_tensors(comparisons, counts),
        sequence_N=torch.tensor(numbers),
        ids=tuple(comparison.id for comparison in comparisons),
        response_counts=tuple(counts),
    )


def lay_out_every_token(
    comparison: TokenizedComparison, pad_token_id: int, layout: Layout
) -> tuple[MicroBatch, list[NDArray[np.int64]]]:
    """Lay out a comparison so that every token is read, and not only the last one of each response.

    Returns:
        The micro-batch, whose "responses" are the tokens that are read; and for each response of the comparison the numbers of its tokens
        among these, from its first to its last. Tokens that responses share have the same numbers.
    """
    batch = lay_out([comparison], pad_token_id, layout)
    if batch.segments is None:
        assert batch.attention_mask_RT is not None, "padded rows have a mask"
        reward_row, reward_column = batch.attention_mask_RT.nonzero(as_tuple=True)
        prefix, own = 0, batch.attention_mask_RT.sum(1).tolist()
    else:
        reward_row, reward_column = torch.zeros_like(batch.input_ids_RT[0]), torch.arange(batch.tokens)
        prefix, own = batch.segments.prefixes[0], list(batch.segments.responses[0])
    ends = prefix + np.cumsum(own)
    places = [np.append(np.arange(prefix), np.arange(end - length, end)) for end, length in zip(ends, own, strict=True)]
    everywhere = replace(
        batch, blocks=(), reward_row_S=reward_row, reward_column_S=reward_column, sequence_N=torch.arange(batch.tokens)
    )
    return everywhere, [places[number] for number in batch.sequence_N.tolist()]


def _padded(distinct: Sequence[Sequence[Tokens]], pad_token_id: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the sequences in descending order of length, and what is laid out: one row each, in this order."""
    sequences = [sequence for of_comparison in distinct for sequence in of_comparison]
    by_length = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
    sequences = [sequences[number] for number in by_length]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    rows, longest = len(sequences), int(lengths[0])
    mask = np.arange(longest)[None, :] < lengths[:, None]
    input_ids = np.full((rows, longest), pad_token_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(sequences)
    return by_length, {
        "input_ids_RT": torch.from_numpy(input_ids),
        "attention_mask_RT": torch.from_numpy(mask.astype(np.int64)),
        "position_ids_RT": torch.arange(longest).expand(rows, longest),
        "segments": None,
        "blocks": _blocks(lengths.tolist()),
        "reward_row_S": torch.arange(rows),
        "reward_column_S": torch.from_numpy(lengths - 1),
        "tokens": int(lengths.sum()),
    }


def _blocks(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Cut rows of descending length into as few blocks as their padding allows."""
    blocks, first, real = [], 0, 0
    for row, length in enumerate(lengths):
        if real + length < (1 - MOST_PADDING) * lengths[first] * (row + 1 - first):
            blocks.append((first, row, lengths[first]))
            first, real = row, 0
        real += length
    return (*blocks, (first, len(lengths), lengths[first]))


def _single_row(distinct: Sequence[Sequence[Tokens]], prefixes: Sequence[int]) -> dict[str, Any]:
    tokens: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    last: list[int] = []
    for sequences, prefix in zip(distinct, prefixes, strict=True):
        for number, sequence in enumerate(sequences):
            begin = prefix if number else 0
            tokens.append(np.asarray(sequence[begin:], dtype=np.int64))
            positions.append(np.arange(begin, len(sequence)))
            last.append(len(sequence) - begin)
    return {
        "input_ids_RT": torch.from_numpy(np.concatenate(tokens))[None],
        "attention_mask_RT": None,
        "position_ids_RT": torch.from_numpy(np.concatenate(positions))[None],
        "segments": Segments(
            tuple(prefixes),
            tuple(
                tuple(len(sequence) - prefix for sequence in sequences)
                for sequences, prefix in zip(distinct, prefixes, strict=True)
            ),
        ),
        "blocks": (),
        "reward_row_S": torch.zeros(len(last), dtype=torch.int64),
        "reward_column_S": torch.from_numpy(np.cumsum(last) - 1),
        "tokens": int(sum(last)),
    }


class Labelled(Protocol):
    """A comparison with its labels, as tokens or scored."""

    @property
    def source(self) -> str: ...
    @property
    def preferences(self) -> Sequence[Preference]: ...
    @property
    def targets(self) -> Sequence[Target]: ...
    @property
    def weight(self) -> float: ...


def label_tensors(rows: Sequence[Labelled], counts: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the fields of a `LabelBatch`, given comparisons and the number of responses of each."""
    winners, losers, margins, probabilities, weights = [], [], [], [], []
    responses, targets, target_weights = [], [], []
    first = 0
    for row, count in zip(rows, counts, strict=True):
        total = sum(edge.weight for edge in row.preferences)
        for edge in row.preferences:
            winners.append(first + edge.winner)
            losers.append(first + edge.loser)
            margins.append(edge.margin)
            probabilities.append(edge.probability)
            weights.append(edge.weight / total * row.weight)
        total = sum(target.weight for target in row.targets)
        for target in row.targets:
            responses.append(first + target.response)
            targets.append(target.value)
            target_weights.append(target.weight / total * row.weight)
        first += count
    return {
        "sources": tuple(row.source for row in rows),
        "comparison_N": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "winner_E": torch.tensor(winners, dtype=torch.int64),
        "loser_E": torch.tensor(losers, dtype=torch.int64),
        "margin_E": torch.tensor(margins, dtype=dtype),
        "probability_E": torch.tensor(probabilities, dtype=dtype),
        "weight_E": torch.tensor(weights, dtype=dtype),
        "response_M": torch.tensor(responses, dtype=torch.int64),
        "target_M": torch.tensor(targets, dtype=dtype),
        "target_weight_M": torch.tensor(target_weights, dtype=dtype),
    }
