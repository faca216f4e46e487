import random

import pytest

from rmtrain.data.comparison import common_prefix_length


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        (([1, 2, 3], [1, 2, 4]), 2),
        (([1, 2], [1, 2, 3]), 1),
        (([1, 2, 3], [1, 2, 3]), 2),
        (([1], [1, 2]), 0),
        (([5, 2], [6, 2]), 0),
        (([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]), 2),
    ],
)
def test_the_common_prefix_leaves_each_sequence_a_token(sequences: tuple[list[int], ...], length: int) -> None:
    assert common_prefix_length(sequences) == length


def test_it_equals_the_loop_it_replaces() -> None:
    rng, longest = random.Random(0), 0
    for _ in range(300):
        shared = [rng.randrange(3) for _ in range(rng.randrange(8))]
        sequences = [shared + [rng.randrange(3) for _ in range(rng.randrange(1, 6))] for _ in range(rng.randrange(2, 5))]
        expected = 0
        while expected < min(map(len, sequences)) - 1 and len({sequence[expected] for sequence in sequences}) == 1:
            expected += 1
        assert common_prefix_length(sequences) == expected
        longest = max(longest, expected)
    assert longest > 5, "guard: long prefixes were among them"
