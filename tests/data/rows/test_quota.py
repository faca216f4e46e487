from collections import Counter

import numpy as np
import pytest

from rmtrain.data.rows.select import Quota


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_the_first_of_each_key_are_admitted_within_and_across_batches() -> None:
    quota = Quota(2)
    assert quota.admit(keys(5, 5, 7, 5, 7)).tolist() == [True, True, True, False, True]
    assert quota.admit(keys(7, 9)).tolist() == [False, True]
    assert quota.admit(keys()).tolist() == []
    assert quota.admit(keys(9, 9, 2**64 - 1)).tolist() == [True, False, True]


@pytest.mark.parametrize(("most", "values", "size"), [(1, 50, 7), (3, 20, 64), (1, 10**6, 100), (2, 1, 5)])
def test_it_says_what_a_counter_says_however_the_batches_are_cut(most: int, values: int, size: int) -> None:
    stream = np.random.default_rng(most).integers(0, values, 3000).astype(np.uint64)
    seen: Counter[int] = Counter()
    expected = []
    for key in stream.tolist():
        seen[key] += 1
        expected.append(seen[key] <= most)
    quota = Quota(most)
    admitted = np.concatenate([quota.admit(stream[begin : begin + size]) for begin in range(0, len(stream), size)])
    assert admitted.tolist() == expected
    assert 0 < admitted.sum() <= len(stream), "guard"


def test_what_it_remembers_is_twelve_bytes_a_key_in_few_pieces() -> None:
    quota = Quota(1)
    for begin in range(0, 100_000, 1000):
        quota.admit(np.arange(begin, begin + 1000, dtype=np.uint64))
    runs = quota._runs
    assert sum(run.keys.nbytes + run.counts.nbytes for run in runs) == 12 * 100_000
    assert len(runs) <= 8
