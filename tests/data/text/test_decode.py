"""The search for a text: every place of a sequence is looked at, and no more rows than needed."""

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.text.tokenizer import Match, decoded, search
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


def rows_with(rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [match.row for match in search(rows, range(len(rows)), tokenizer, text) if match is not None]


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
    (match,) = search(rows, [1], tokenizer, "KNOW")
    assert match is not None
    assert (match.row, match.response) == (1, 1)
    assert decoded(rows[1].sequences[1], tokenizer)[match.begin : match.end] == "know"
    shared = list(search(rows, [0], tokenizer, "what"))
    assert shared == [Match(0, 0, 0, 4)], "in what both share the first response counts"


def test_search_reads_no_further_than_needed(rows: list[TokenizedComparison], tokenizer: PreTrainedTokenizerFast) -> None:
    read: list[int] = []
    numbers = (read.append(number) or number for number in [3, 0, 2, 1])
    results = search(rows, numbers, tokenizer, "chicken")
    first = next(results)
    assert first is not None
    assert (first.row, read) == (3, [3])
    assert [match.row if match else None for match in results] == [None, 2, None]


def test_decoded_text_is_the_tokenizers() -> None:
    tokenizer = unigram_like()
    ids = tokenizer("The quick brown fox.")["input_ids"]
    assert "quick brown fox" in decoded(ids, tokenizer)
    assert decoded(ids, tokenizer).startswith("<s>")
