"""What is scored is what is trained on: the same tokens, cut only where that was asked for."""

from typing import Any

import pytest

from rmtrain.data.comparison import PAIR, Comparison, TokenizedComparison
from rmtrain.data.text.tokenize import Encoder
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import Limit, ScoreRequest, Turns, encode
from rmtrain.recipe.schema import Data, PairSource
from tests.helpers import byte_bpe, llama_like

FREE = Limit(None, "error")


def said(role: str, text: str) -> Turns:
    return ({"role": role, "content": text},)


def asked(*responses: str, prompt: str = "What is the capital of France?") -> ScoreRequest:
    return ScoreRequest("row 1", said("user", prompt), tuple(said("assistant", response) for response in responses), "src", PAIR)


@pytest.mark.parametrize("made", [lambda: prepared(byte_bpe(), "simple_chat"), lambda: prepared(llama_like(), "tokenizer")])
def test_tokens_are_those_of_training(made: Any) -> None:
    tokenizer = made()
    row = asked("Paris.", "It is Paris, I think.")
    (ours,), cut = encode([row], tokenizer, FREE)
    data = Data(train=[PairSource(path="x")], chat_template="simple_chat", max_length=512)
    (theirs,) = Encoder(tokenizer, data).encode([Comparison("row 1", "src", row.prompt, row.responses)])
    assert theirs.row is not None
    assert [list(s) for s in ours.sequences] == [[int(t) for t in s] for s in theirs.row.sequences]
    assert (ours.prefix_length, cut) == (theirs.row.prefix_length, [False])
    assert ours.prefix_length > 3, "guard: the prompt is shared"


def lengths(row: TokenizedComparison) -> list[int]:
    return [len(sequence) for sequence in row.sequences]


def test_what_is_too_long_loses_its_beginning_or_is_refused() -> None:
    tokenizer = prepared(llama_like(), "tokenizer")
    rows = [asked("Paris.", "It is Paris, I think, but I do not know."), asked("No.", prompt="Why?")]
    (whole, short), _ = encode(rows, tokenizer, FREE)
    limit = min(lengths(whole)) + 2
    (fitting, same), cut = encode(rows, tokenizer, Limit(limit, "cut"))
    assert cut == [True, False]
    assert lengths(fitting) == [lengths(whole)[0], limit]
    assert fitting.sequences[1][0] == tokenizer.bos_token_id, "what stands before a text stays"
    assert list(fitting.sequences[1][1:]) == list(whole.sequences[1][-(limit - 1) :]), "the end stays"
    assert same == short
    for one, other in ((0, 1), (1, 0)):
        assert list(fitting.sequences[one][: fitting.prefix_length]) == list(fitting.sequences[other][: fitting.prefix_length])
    with pytest.raises(DataError, match=rf"row 1, response 2: {lengths(whole)[1]} tokens, over the limit of {limit}"):
        encode(rows, tokenizer, Limit(limit, "error"))


def test_a_single_response_and_identical_ones() -> None:
    tokenizer = prepared(byte_bpe(), "simple_chat")
    (one, twice), _ = encode([asked("Paris."), asked("Paris.", "Paris.")], tokenizer, FREE)
    assert one.prefix_length == 0
    assert twice.prefix_length == len(twice.sequences[0]) - 1
    assert list(one.sequences[0]) == list(twice.sequences[1])
