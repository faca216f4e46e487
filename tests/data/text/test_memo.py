"""Tokens of pieces are put together as a loop would, and computed once each until they are forgotten."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.text import token_pieces as memo
from rmtrain.data.text.token_pieces import Memo, Ragged

words = st.text("abc", max_size=4)


@settings(deadline=None, derandomize=True)
@given(batches=st.lists(st.lists(st.lists(words, min_size=1, max_size=5), max_size=6), max_size=4))
def test_texts_are_their_pieces_put_together(batches: list[list[list[str]]]) -> None:
    asked: list[str] = []

    def compute(pieces: list[str]) -> Ragged:
        asked.extend(pieces)
        return Ragged.of([list(piece.encode()) for piece in pieces])

    remembering = Memo(compute)
    for texts in batches:
        expected = ["".join(pieces).encode() for pieces in texts]
        assert [bytes(tokens.tolist()) for tokens in remembering.joined(texts).parts()] == expected
    assert sorted(asked) == sorted({piece for texts in batches for pieces in texts for piece in pieces})


def test_everything_is_forgotten_once_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "REMEMBERED_CHARACTERS", 200)
    calls: list[int] = []

    def compute(pieces: list[str]) -> Ragged:
        calls.append(len(pieces))
        return Ragged.of([[int(piece)] for piece in pieces])

    remembering = Memo(compute)
    for turn in range(6):
        texts = [[str(number), "7"] for number in range(turn, turn + 5)]
        assert [tokens.tolist() for tokens in remembering.joined(texts).parts()] == [[turn + k, 7] for k in range(5)]
    assert np.diff([len(remembering.numbers), 20]) > 0, "it is bounded"
    assert sum(calls) > 15, "guard: some were forgotten and computed again"
