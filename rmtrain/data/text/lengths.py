"""The length policy: what happens to a comparison over a limit. A response is never cut."""

from dataclasses import replace

import numpy as np

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import Data


def overlong(row: TokenizedComparison, data: Data, leading: int) -> dict[int, BadRow]:
    """Responses that no policy keeps, by number: `too_long`, or, where the prompt may be cut, `response_too_long`.

    Args:
        row: the comparison.
        data: the limits and the policy.
        leading: special tokens at the beginning of a sequence, such as `<s>`, which stay.
    """
    faults = {}
    for number, sequence in enumerate(row.sequences):
        excess = len(sequence) - data.max_length
        if excess > 0 and data.overlong != "truncate_prompt_left":
            faults[number] = BadRow("too_long", f"{len(sequence)} tokens, over max_length {data.max_length}")
        elif excess > row.prompt_length - leading:
            own = len(sequence) - row.prompt_length
            faults[number] = BadRow("response_too_long", f"response of {own} tokens alone is over max_length {data.max_length}")
    return faults


def fit_prompt(row: TokenizedComparison, data: Data, leading: int) -> TokenizedComparison:
    """The comparison within `data.max_length` and `data.max_prompt_length`, none of its responses being `overlong`.

    Under `truncate_prompt_left` the same tokens are cut from the beginning of the prompt for every response, so that the prefix stays
    shared and the responses stay different. What was cut may end in the middle of a message.

    Raises:
        BadRow: `prompt_too_long`, where the prompt may not be cut.
    """
    excess = max(map(len, row.sequences)) - data.max_length
    prompt_excess = row.prompt_length - data.max_prompt_length if data.max_prompt_length is not None else 0
    cut = min(max(excess, prompt_excess), row.prompt_length - leading)
    if cut <= 0:
        return row
    if data.overlong != "truncate_prompt_left":
        raise BadRow("prompt_too_long", f"prompt of {row.prompt_length} tokens, over max_prompt_length {data.max_prompt_length}")
    return replace(
        row,
        sequences=tuple(np.delete(sequence, slice(leading, leading + cut)) for sequence in row.sequences),
        prefix_length=row.prefix_length - cut,
        prompt_length=row.prompt_length - cut,
    )
