"""What several token sequences begin with."""

from collections.abc import Sequence

import numpy as np

from rmtrain.data.comparison import Tokens


def common_prefix_length(sequences: Sequence[Tokens]) -> int:
    """Length of the longest common beginning, in tokens, at most the shortest length minus one: each keeps a token of its own."""
    length = max(min(map(len, sequences)) - 1, 0)
    first = np.asarray(sequences[0][:length])
    for sequence in sequences[1:]:
        differs = first[:length] != np.asarray(sequence[:length])
        if differs.any():
            length = int(differs.argmax())
    return length
