"""Token lengths: percentiles that occur, and histograms whose columns are counts."""

import numpy as np
import pytest

from rmtrain.report.lengths import BLOCKS, LengthDistribution, length_statistics, length_table
from tests.report.render import render


def lengths(count: int = 2000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    prompt = generator.integers(5, 60, count)
    return {
        "prompt": prompt,
        "chosen": prompt + generator.integers(5, 200, count),
        "rejected": prompt + generator.integers(5, 100, count),
    }


def test_percentiles_are_lengths_that_occur() -> None:
    assert length_statistics(np.arange(1, 101)) == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert length_statistics(np.array([7])) == {"mean": 7.0, "p50": 7, "p90": 7, "p99": 7, "max": 7}


def test_table_has_a_row_for_each_name() -> None:
    table = render(length_table({"prompt": np.arange(1, 101), "chosen": np.arange(1, 10_001)}))
    assert table == (
        "tokens      mean     p50     p90     p99      max\n"
        "prompt      50.5      50      90      99      100\n"
        "chosen   5,000.5   5,000   9,000   9,900   10,000\n"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_distribution_fits_any_width(width: int) -> None:
    values = lengths()
    rows = render(LengthDistribution(values), width=width).splitlines()
    assert len(rows) == 3 * len(values) + 1
    assert max(map(len, rows)) <= width
    assert rows[-1].split()[0] == "0"
    assert rows[-1].endswith("tokens")
    baseline = next(row for row in rows if row.startswith("prompt"))
    assert set(baseline[len("rejected  ") :]) <= set(BLOCKS)


def test_heights_are_proportional_to_counts() -> None:
    values = np.repeat([0, 19], [100, 50])
    upper, lower, axis = render(LengthDistribution({"x": values}, height=2, max_columns=20), width=30).splitlines()
    assert upper == "   ▁"
    assert lower == "x  █                  ▅"
    assert axis == "   0          19 tokens"


def test_middle_label_gives_way() -> None:
    wide, narrow = (render(LengthDistribution({"x": np.array([1, 123_456])}), width=width).splitlines()[-1] for width in (60, 24))
    assert wide.split() == ["0", "61,728", "123,456", "tokens"]
    assert narrow.split() == ["0", "123,456", "tokens"]


def test_long_row_does_not_squeeze_the_rest() -> None:
    values = np.append(np.arange(1, 1000) % 100, 50_000)
    text = render(LengthDistribution({"prompt": values}))
    assert "+ tokens" in text
    assert "50,000" not in text
    assert text.splitlines()[-2].count("█") > 40


def test_equal_lengths_are_drawn() -> None:
    text = render(LengthDistribution({"prompt": np.full(10, 12)}))
    assert "█" in text
    assert "12 tokens" in text
