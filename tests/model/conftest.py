"""Fixtures for the tests of rmtrain/model."""

from typing import Any

import pytest
import torch

from tests.model.builders import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
