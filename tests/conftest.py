"""Fixtures shared by all tests: real data when it is at hand, tiny models, and recipes as files."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))  # `make faults` looks for what is new


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data next to the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real preference data: put its files into ../shared/data, next to the checkout")
    return folder
