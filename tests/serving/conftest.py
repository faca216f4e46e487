"""One tiny model for all tests of the server, whose rewards are about 1: float32 then rounds to 1e-7."""

import pytest

from rmtrain.evaluation.scorer import RewardScorer
from tests.exports import tiny_export


@pytest.fixture(scope="package")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardScorer:
    made = RewardScorer(tiny_export(tmp_path_factory.mktemp("serving") / "model", spread=2.0))
    assert made.choose_layout([]) == "shared_prefix"
    return made
