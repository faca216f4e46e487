"""The length policy: what happens to a comparison over a limit. A response is never cut."""

from dataclasses import replace

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.messages import BadRow
from rmtrain.recipe.schema import Data


def fit(row: TokenizedComparison, data: Data, leading: int) -> TokenizedComparison:
    """The comparison within `data.max_length` and `data.max_prompt_length`.

    Under `truncate_prompt_left` the same tokens are cut from the beginning of the prompt for every response, so that the prefix stays
    shared and the responses stay different. What was cut may end in the middle of a message.

    Args:
        row: the comparison.
        data: the limits and the policy.
        leading: special tokens at the beginning of a sequence, such as `<s>`, which stay.

    Raises:
        BadRow: it is too long: `too_long`, `prompt_too_long`, or, where the prompt may be cut, `response_too_long`.
    """
    longest = max(map(len, row.sequences))
    excess = longest - data.max_length
    prompt_excess = row.prompt_length - data.max_prompt_length if data.max_prompt_length is not None else 0
    if excess <= 0 and prompt_excess <= 0:
        return row
    if data.overlong != "truncate_prompt_left":
        if excess > 0:
            raise BadRow("too_long", f"{longest} tokens, over max_length {data.max_length}")
        raise BadRow("prompt_too_long", f"prompt of {row.prompt_length} tokens, over max_prompt_length {data.max_prompt_length}")
    cut = max(excess, prompt_excess)
    if cut > row.prompt_length - leading:
        response = longest - row.prompt_length
        raise BadRow("response_too_long", f"response of {response} tokens alone is over max_length {data.max_length}")
    return replace(
        row,
        sequences=tuple([*sequence[:leading], *sequence[leading + cut :]] for sequence in row.sequences),
        prefix_length=row.prefix_length - cut,
        prompt_length=row.prompt_length - cut,
    )
