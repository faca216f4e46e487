"""The search for a text: every place of a sequence is looked at, and no more rows than needed."""

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.decode import Match, decoded, search
from tests.comparisons import tokenized
from tests.helpers import byte_bpe, unigram_like

TEXTS = [
    ("What is Paris? ", "A city.", "A river.*"),
    ("How do I bake? ", "Mix flour (much).", "I don't know 🦊."),
    ("Tell me a joke. ", "Why did the CHICKEN cross?", "No."),
    ("More. ", "The chicken sleeps.", "chicken"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_bpe()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[TokenizedComparison]:
    end = tokenizer.eos_token_id
    return [
        tokenized(f"a:{number}", *([*tokenizer(prompt + response)["input_ids"], end] for response in responses))
        for number, (prompt, *responses) in enumerate(TEXTS)
    ]


def rows_with(rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast, text: str, limit: int = 9) -> list[int]:
    return [match.row for match in search(rows, range(len(rows)), tokenizer, text, limit).matches]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chicken", [2, 3]),
        ("CHICKEN SLEEPS", [3]),
        ("how do i", [1]),
        ("joke. why", [2]),
        ("flour (", [1]),
        (".*", [0]),
        ("🦊", [1]),
        ("<|endoftext|>", [0, 1, 2, 3]),
        ("river.*<|endoftext|>", [0]),
        ("nowhere", []),
    ],
)
def test_search_finds_text_anywhere(
    rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast, text: str, expected: list[int]
) -> None:
    """A text is found in prompts, in responses, across both and in special tokens, ignoring case."""
    assert rows_with(rows, tokenizer, text) == expected


def test_match_gives_the_place(rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast) -> None:
    (match,) = search(rows, [1], tokenizer, "KNOW", 1).matches
    assert (match.row, match.response) == (1, 1)
    assert decoded(rows[1].sequences[1], tokenizer)[match.begin : match.end] == "know"
    shared = search(rows, [0], tokenizer, "what", 1).matches
    assert shared == [Match(0, 0, 0, 4)], "in what both share the first response counts"


def test_search_stops_at_the_limit(rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast) -> None:
    progress: list[int] = []
    result = search(rows, [3, 0, 2, 1], tokenizer, "chicken", 1, progress.append)
    assert ([match.row for match in result.matches], result.searched, progress) == ([3], 1, [1])
    assert search(rows, [3, 0, 2, 1], tokenizer, "chicken", 2).searched == 3
    everything = search(rows, range(4), tokenizer, "chicken", 3)
    assert (len(everything.matches), everything.searched) == (2, 4), "guard: the limit was not reached"


def test_decoded_text_is_the_tokenizers() -> None:
    tokenizer = unigram_like()
    ids = tokenizer("The quick brown fox.")["input_ids"]
    assert "quick brown fox" in decoded(ids, tokenizer)
    assert decoded(ids, tokenizer).startswith("<s>")
