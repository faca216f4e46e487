"""Responses as text again, where a check needs it: nothing of it is kept."""

from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import TokenizedComparison


def decoded(responses: Iterable[tuple[TokenizedComparison, int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of responses, each given as its comparison and its number there, without prompt and special tokens.

    It is the text as far as the tokenizer keeps it: one that lowers case or drops line feeds gives it so.
    """
    tokens = [np.asarray(row.sequences[number][row.prompt_length :]).tolist() for row, number in responses]
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True) if tokens else []
    return texts
