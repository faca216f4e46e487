import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from rmtrain.data.text.templates import NEW_PAD_TOKEN, choose_pad_token, edge_tokens
from rmtrain.errors import RecipeError
from tests.helpers import bert_like, byte_bpe, llama_like, roberta_like, unigram_like


@pytest.mark.parametrize(
    ("tokenizer", "leading", "trailing", "end", "in_template"),
    [
        (byte_bpe(), [], [], "<|endoftext|>", True),
        (llama_like(), ["<s>"], [], "</s>", True),
        (unigram_like(), ["<s>"], [], "</s>", True),
        (bert_like(), ["[CLS]"], ["[SEP]"], "[SEP]", False),
        (roberta_like(), ["<s>"], ["</s>"], "</s>", False),
    ],
    ids=["gpt2", "llama", "unigram", "bert", "roberta"],
)
def test_the_edges_of_a_text_are_those_of_its_tokenizer(
    tokenizer: PreTrainedTokenizerFast, leading: list[str], trailing: list[str], end: str, in_template: bool
) -> None:
    edges = edge_tokens(tokenizer)
    names = tokenizer.convert_ids_to_tokens
    assert (names(list(edges.leading)), names(list(edges.trailing)), names(edges.end)) == (leading, trailing, end)
    assert edges.in_template is in_template


def test_a_tokenizer_without_end_token_is_refused_with_the_fix() -> None:
    with pytest.raises(RecipeError, match=r"has no end token; set eos_token in its tokenizer_config.json"):
        edge_tokens(byte_bpe(pad_token="<|pad|>"))


def pad(tokenizer: PreTrainedTokenizerFast) -> str:
    return str(choose_pad_token(tokenizer, edge_tokens(tokenizer).end))


@pytest.mark.parametrize(
    ("special", "named", "expected"),
    [
        (["<e>", "<p>"], {"eos_token": "<e>", "pad_token": "<p>"}, "<p>"),
        (["<e>", "<|padding|>"], {"eos_token": "<e>", "pad_token": "<e>"}, "<|padding|>"),
        (["<e>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], {"eos_token": "<e>"}, "<|finetune_right_pad_id|>"),
        (
            ["<e>", "<u>", "<|reserved_special_token_0|>"],
            {"eos_token": "<e>", "unk_token": "<u>"},
            "<|reserved_special_token_0|>",
        ),
        (["<e>", "<u>"], {"eos_token": "<e>", "unk_token": "<u>", "pad_token": "<e>"}, "<u>"),
        (["<e>"], {"eos_token": "<e>", "unk_token": "<e>", "pad_token": "<e>"}, NEW_PAD_TOKEN),
        (["<e>", "<b>"], {"eos_token": "<e>", "bos_token": "<b>", "pad_token": "<b>"}, NEW_PAD_TOKEN),
        (["<e>"], {"eos_token": "<e>"}, NEW_PAD_TOKEN),
    ],
)
def test_trap_01_the_padding_is_never_a_token_that_ends_a_text(special: list[str], named: dict[str, str], expected: str) -> None:
    assert pad(byte_bpe(special_tokens=special, **named)) == expected


def test_an_encoder_keeps_its_padding() -> None:
    assert pad(bert_like()) == "[PAD]"
    assert pad(roberta_like()) == "<pad>"


def test_an_ordinary_word_is_no_padding() -> None:
    tokenizer = byte_bpe(special_tokens=["<e>"], eos_token="<e>")
    tokenizer.add_tokens([AddedToken("notepad", special=False)])
    assert pad(tokenizer) == NEW_PAD_TOKEN
