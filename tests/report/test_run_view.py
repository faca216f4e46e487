"""The report of a dry run: its table, its conclusion, and their width."""

from typing import Any

import pytest

from rmtrain.report.run_view import PARTS, dry_run_report
from tests.report.render import render

GIGABYTE = 10**9


def strategy(name: str, processes: int, total: float, *, fits: bool) -> dict[str, Any]:
    parts = {"weights": 26.0, "gradients": 26.0, "optimizer": 52.0, "buffers": 0.0}
    scale = (total - 4) / sum(parts.values())
    made = {key: round(value * scale * GIGABYTE) for key, value in parts.items()}
    made |= {"activations": 4 * GIGABYTE, "total": round(total * GIGABYTE), "memory": 80 * GIGABYTE}
    return {"name": name, "processes": processes, "start": 0, "host": 0, "fits": fits, **made}


DOCUMENT: dict[str, Any] = {
    "name": "rm_7b",
    "model": "llama from scratch",
    "parameters": 6_480_000_000,
    "trainable": 6_480_000_000,
    "adapters": None,
    "comparisons": 61_135,
    "steps": 1911,
    "batch_size": 32,
    "layout": "shared_prefix",
    "layout_is_auto": True,
    "tokens_per_epoch": 13_200_000,
    "padded_tokens_per_epoch": 71_000_000,
    "tokens": 13_200_000,
    "micro_batches_per_step": 1.25,
    "max_tokens": 8192,
    "max_tokens_is_auto": False,
    "largest_micro_batch": 8117,
    "strategy": "ddp",
    "processes": 8,
    "machines": 1,
    "device": "cuda",
    "computing": "bfloat16",
    "strategies": [
        strategy("single", 1, 108, fits=False),
        strategy("ddp", 8, 134, fits=False),
        strategy("fsdp2", 8, 24.5, fits=True),
        strategy("zero2", 8, 61, fits=True),
    ],
    "fits": False,
    "seconds": None,
    "tokens_per_second": None,
}


def cells(text: str, title: str) -> list[str]:
    """The numbers and the verdict of a line of the table."""
    line = next(line for line in text.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


def test_a_line_for_each_strategy() -> None:
    """Numbers of the document are there, in lines of 80 columns."""
    text = render(dry_run_report(DOCUMENT))
    lines = text.splitlines()
    assert "rm_7b" in lines[0]
    for value in ("6.48B", "1,911", "61,135", "13.2M", "8,117", "8,192", "5.4 times", "bfloat16"):
        assert value in " ".join(text.split()), "also where a line is folded"
    assert all(len(line) <= 80 for line in lines)
    assert cells(text, "FSDP2 × 8")[-4:] == ["0.0", "4.0", "24.4", "fits"]
    assert "fits" not in cells(text, "DDP × 8")


def test_table_adds_up_as_printed() -> None:
    """Parts are rounded before they are added, so that a reader who adds them gets the total."""
    parts = {part: 1_250_000_000 + 40_000_000 * number for number, part in enumerate(PARTS)}
    row = {
        **strategy("single", 1, 24.5, fits=True),
        **parts,
        "total": sum(parts.values()) + 9 * GIGABYTE,
        "optimizer": 10_290_000_000,
    }
    *numbers, verdict = cells(render(dry_run_report({**DOCUMENT, "strategy": "single", "strategies": [row]})), "one process ")
    assert verdict == "fits"
    values = list(map(float, numbers))
    assert values[-1] == pytest.approx(sum(values[:-1]), abs=1e-9)
    assert numbers[-1] in render(dry_run_report({**DOCUMENT, "strategy": "single", "strategies": [row]})).splitlines()[-1]
    assert len(values) == len(PARTS) + 1, "guard: all parts are there"


def test_conclusion_names_what_would_fit() -> None:
    conclusion = " ".join(render(dry_run_report(DOCUMENT)).splitlines()[-2:])
    for value in ("DDP × 8", "134", "80.0", "FSDP2 × 8", "ZeRO-2 × 8", "--processes 8 --accelerate-config fsdp2"):
        assert value in conclusion


def test_start_counts_where_it_is_more() -> None:
    """Sharding the whole model can take more than a step; then the conclusion has both numbers."""
    row = {**strategy("fsdp2", 8, 24.5, fits=True), "start": 30 * GIGABYTE}
    document = {**DOCUMENT, "strategy": "fsdp2", "strategies": [row]}
    last = render(dry_run_report(document), width=200).splitlines()[-1]
    assert all(value in last for value in ("FSDP2 × 8", "24.4", "80.0", "30.0"))
    document["strategies"] = [{**row, "start": 10 * GIGABYTE}]
    assert "10.0" not in render(dry_run_report(document), width=200), "guard: a smaller start is not worth a word"


def test_offload_names_main_memory() -> None:
    """Of a process in the table, if it is wide enough, and of a machine in the conclusion, for the strategy that is meant or advised."""
    offload = {**strategy("fsdp2_offload", 8, 24.5, fits=True), "host": 52 * GIGABYTE}
    rows = [strategy("ddp", 8, 134, fits=False), offload]
    for width in (80, 120):
        text = render(dry_run_report({**DOCUMENT, "strategies": rows, "machines": 2}), width=width)
        conclusion = " ".join(text.partition("does not fit")[2].split())
        assert "--accelerate-config fsdp2_offload" in conclusion
        assert "208.0 GB of main memory" in conclusion
        assert ("on CPU" in text) == (width == 120)
    assert cells(text, "FSDP2 offload × 8")[-2:] == ["52.0", "fits"]
    meant = render(dry_run_report({**DOCUMENT, "strategy": "fsdp2_offload", "strategies": rows}), width=200)
    assert "416.0 GB of main memory" in meant.splitlines()[-1]
    assert "main memory" not in render(dry_run_report(DOCUMENT), width=200), "guard: nothing else is offloaded"


def test_where_nothing_fits_keys_are_named() -> None:
    text = render(dry_run_report({**DOCUMENT, "strategies": [strategy("ddp", 8, 134, fits=False)]}), width=200)
    assert all(key in text.splitlines()[-1] for key in ("batching.max_tokens", "model.gradient_checkpointing", "lora"))


def test_time_only_where_it_was_measured() -> None:
    text = render(dry_run_report({**DOCUMENT, "seconds": 5400.0, "tokens_per_second": 305.5}), width=160)
    (line,) = (line for line in text.splitlines() if line.startswith("time "))
    assert "1h30m" in line
    assert "306" in line
    assert "time" not in render(dry_run_report(DOCUMENT)).split(), "guard: no time without a measurement"
