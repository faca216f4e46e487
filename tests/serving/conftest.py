"""One tiny model for all tests of the server."""

import pytest

from rmtrain.evaluation.scorer import RewardScorer
from tests.exports import tiny_export


@pytest.fixture(scope="package")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardScorer:
    made = RewardScorer(tiny_export(tmp_path_factory.mktemp("serving") / "model"))
    assert made.choose_layout([]) == "shared_prefix"
    return made
