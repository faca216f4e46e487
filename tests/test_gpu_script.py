"""`make gpu` without a GPU: its rehearsal runs every part, and what is wrong in a layout or kernel ends it with a line that says which."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from benchmarks import gpu, gpu_checks
from rmtrain.model import attention
from tests.model.test_varlen import Kernel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU the script rehearses; with one it takes minutes")


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON of a run, and the message of its exit; empty where it ended well. A busy machine gets the time that it needs."""
    try:
        gpu.main(["--json", str(folder / "gpu.json"), "--minutes", "120", *arguments])
    except SystemExit as ended:
        return json.loads((folder / "gpu.json").read_text()), str(ended)
    return json.loads((folder / "gpu.json").read_text()), ""


def test_rehearsal_runs_every_part(tmp_path: Path) -> None:
    """The same code as on a GPU, with tiny sizes; what a CPU cannot tell has no value and says so."""
    document, problem = run(tmp_path)
    parts = document["parts"]
    assert (problem, document["failures"], document["rehearsal"]) == ("", [], True)
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(gpu.PARTS, "finished")
    lines = {name: part["lines"] for name, part in parts.items()}

    compared = [line["details"] for line in lines["equality"] if "dtype" in line["details"]]
    assert {(one["dtype"], one["layout"]) for one in compared} == {
        (dtype, layout) for dtype in ("float32", "bfloat16", "float16") for layout in gpu.LAYOUTS
    }
    assert {one["kernel"] for one in compared} >= {"SDPA", "written out"}
    assert {line["case"] for line in lines["equality"]} == set(gpu_checks.REHEARSED)
    assert all(sum(one["rounding"].values()) > 0 for one in compared if one["dtype"] != "float32"), "guard: types round"
    assert max(one["differences"]["rewards"] for one in compared) > 0, "guard: layouts are not one computation"

    losses, grad_norms = (line["details"] for line in lines["parity"])
    assert losses["steps"] == len(losses["cpu"]) == gpu_checks.STEPS
    assert losses["cpu"] != sorted(losses["cpu"]), "guard: losses are of different rows"
    assert len(set(grad_norms["cpu"])) == gpu_checks.STEPS

    estimate, fits, share, halved, same = lines["memory"]
    assert (estimate["value"], share["value"]) == (None, None)
    assert estimate["details"]["estimated"] > 1e6
    assert {"not_measured"} <= estimate["details"].keys() & share["details"].keys()
    assert fits["details"]["budget"] == fits["details"]["last_budget"] > 0
    assert halved["details"]["budget"] == gpu_checks.TOO_LARGE * halved["details"]["last_budget"]
    assert same["value"] <= same["most"]

    runs = {line["details"]["run"]: line["value"] for line in lines["speed"]}
    assert runs.keys() == {*(f"ours {layout}" for layout in gpu.LAYOUTS), "trl default"}
    assert all(value > 0 for value in runs.values())
    assert [line["what"] for line in gpu.figures_of(lines["speed"])][1] == "tiny, against TRL as it comes"
    without = [line for line in lines["speed"] if not line["details"]["run"].startswith("trl")]
    assert [line["what"] for line in gpu.figures_of(without)][1] == "tiny, against our padded layout, without TRL"


@pytest.fixture
def windowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A model with windows that attends as on a GPU, by a stand-in for its kernel."""
    kernel = Kernel()
    monkeypatch.setattr(attention, "varlen_attn", kernel.current)
    monkeypatch.setattr(gpu_checks, "REHEARSED", ("mistral",))
    AttentionInterface.register(attention.ATTENTION, partial(attention.attend, as_on_gpu=True))
    yield kernel
    AttentionInterface.register(attention.ATTENTION, attention.attend)


def test_wrong_window_of_kernel_is_named(windowed: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel is right all passes, with it and without it; a window of one token more fails in it alone."""
    document, problem = run(tmp_path, "--parts", "equality")
    taken = {(line["details"]["dtype"], line["details"]["kernel"]) for line in document["parts"]["equality"]["lines"][1:]}
    assert problem == ""
    assert taken == {
        ("float32", "SDPA"),
        *((dtype, kernel) for dtype in ("bfloat16", "float16") for kernel in ("SDPA", "varlen")),
    }

    right = windowed.current

    def wrong(*tensors: Any, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False) -> torch.Tensor:
        return right(*tensors, scale=scale, window_size=(window_size[0] + 1, 0), enable_gqa=enable_gqa)

    monkeypatch.setattr(attention, "varlen_attn", wrong)
    document, problem = run(tmp_path, "--parts", "equality")
    failed = problem.splitlines()
    assert failed == document["failures"]
    assert {tuple(line.split(": ")[2].split(", ")) for line in failed} == {
        (dtype, layout, "varlen") for dtype in ("bfloat16", "float16") for layout in ("packed", "shared_prefix")
    }
    assert min(windowed.windows) >= 0, "guard: there are windows"


def test_late_and_broken_parts_keep_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that takes too long, one that raises, and one without time each say so; what they found before is kept."""
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.05)

    def lines(problem: Exception | None) -> Iterator[gpu_checks.Line]:
        yield gpu_checks.Line("case", "value", float("nan"), most=1.0)
        while problem is None:
            pass
        raise problem

    parts = {
        "late": gpu.carry_out(lines(None), 0.1),
        "broken": gpu.carry_out(lines(ValueError("of shape\n[2, 3]")), 60.0),
        "left out": gpu.carry_out(lines(None), 0.01),
    }
    assert {name: (part["status"], len(part["lines"])) for name, part in parts.items()} == {
        "late": ("out of time", 1),
        "broken": ("failed", 1),
        "left out": ("skipped", 0),
    }
    failed = gpu.failures(parts)
    assert [line.split(":")[0] for line in failed] == ["late", "late", "broken", "broken", "left out"], "NaN keeps no bound"
    assert "ValueError: of shape [2, 3]" in failed[3]
