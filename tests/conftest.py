"""Fixtures shared by all tests: real data when it is at hand, tiny models, and recipes as files."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

from tests.chromium import PROGRAM, Browser, chromium
from tests.forks import run_script

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of pytest's workers would use all cores, and wait for the others' threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))  # `make faults` looks for what is new


SLOW = (
    "test_readme",
    "test_launch",
    "test_strategy",
    "test_elastic",
    "test_ranks",
    "test_eval_ranks",
    "test_memory",
    "test_signals",
)
"""Files that take longest. They run first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


@pytest.fixture(autouse=True)
def forked_reload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reload exports in a fork, which takes a tenth of the time, unless a test is marked `fresh_reload`."""
    if "rmtrain.model.export_dir" in sys.modules and request.node.get_closest_marker("fresh_reload") is None:
        monkeypatch.setattr("rmtrain.model.export_dir.subprocess", SimpleNamespace(run=run_script))


@pytest.fixture(autouse=True)
def own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the command line changes in its process, where a test runs it in this one: the streams, and who prints log records."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(logging.getLogger("rmtrain"), "handlers", [])


@pytest.fixture
def no_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the fresh process that reloads each export, which takes seconds, in tests of something else."""
    monkeypatch.setattr("rmtrain.model.export_dir.check_reload", lambda *_: None)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium that looks at pages."""
    if PROGRAM is None:
        pytest.skip("needs chromium; on Debian: apt-get install chromium")
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data next to the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real preference data: put its files into ../shared/data, next to the checkout")
    return folder
