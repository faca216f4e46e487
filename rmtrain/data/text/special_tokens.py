"""Which special tokens stand at the edges of a text: what the tokenizer adds itself, which token ends a response, which one pads."""

import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.errors import RecipeError

NEW_PAD_TOKEN = "<|pad|>"
PAD_NAME = re.compile(r"pad", re.IGNORECASE)
SPARE_NAME = re.compile(r"reserved|unused", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EdgeTokens:
    """The special tokens around a text.

    leading, trailing: ids that `tokenizer(text)` puts before and after the text by itself.
    end: id of the token that ends every response and where the reward is read.
    in_template: whether the chat template writes them, as decoder models have it (`<s>` or nothing, then `</s>`); otherwise the
        tokenizer adds them to the rendered text, as encoder models have it (`[CLS]` and `[SEP]`).
    """

    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    end: int
    in_template: bool


def edge_tokens(tokenizer: PreTrainedTokenizerBase) -> EdgeTokens:
    """The edge tokens of a tokenizer, found by encoding a word with and without special tokens.

    Raises:
        RecipeError: the tokenizer has no token that could end a response.
    """
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    begin = next(start for start in range(len(whole) + 1) if whole[start : start + len(bare)] == bare)
    leading, trailing = tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
    end = trailing[-1] if trailing else tokenizer.eos_token_id
    if end is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end token; set eos_token in its tokenizer_config.json, "
            "or take another tokenizer"
        )
    return EdgeTokens(leading, trailing, end, in_template=not trailing and leading in ((), (tokenizer.bos_token_id,)))


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, end: int) -> Any:
    """The token to pad with, never one that ends a response: transformers reads the reward at the last token that is not padding.

    The tokenizer's own where it is another token; else an existing special token made for padding, a reserved or unused one, or the
    unknown token; else a new `<|pad|>`, for which the model's embeddings must grow.
    """
    ends = {end, tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token
    spare = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special and index not in ends}
    for pattern in (PAD_NAME, SPARE_NAME):
        for name in spare:
            if pattern.search(name):
                return name
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in ends:
        return tokenizer.unk_token
    return NEW_PAD_TOKEN
