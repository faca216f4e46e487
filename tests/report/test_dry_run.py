"""What a dry run says, to the letter, at 80 columns."""

from typing import Any

from rmtrain.report.dry_run import dry_run_report
from tests.report.render import render

GIGABYTE = 10**9


def share(name: str, processes: int, total: float, *, fits: bool) -> dict[str, Any]:
    parts = {"weights": 26.0, "gradients": 26.0, "optimizer": 52.0, "buffers": 0.0}
    scale = (total - 4) / sum(parts.values())
    made = {key: round(value * scale * GIGABYTE) for key, value in parts.items()}
    made |= {"activations": 4 * GIGABYTE, "total": round(total * GIGABYTE), "memory": 80 * GIGABYTE}
    return {"name": name, "processes": processes, "start": 0, "fits": fits, **made}


DOCUMENT: dict[str, Any] = {
    "name": "rm_7b",
    "model": "llama from scratch",
    "parameters": 6_480_000_000,
    "trainable": 6_480_000_000,
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
    "device": "cuda",
    "computing": "bfloat16",
    "strategies": [
        share("single", 1, 108, fits=False),
        share("ddp", 8, 134, fits=False),
        share("fsdp2", 8, 24.5, fits=True),
        share("zero2", 8, 61, fits=True),
    ],
    "fits": False,
    "seconds": None,
    "tokens_per_second": None,
}


def test_what_does_not_fit_is_said_with_what_would() -> None:
    text = render(dry_run_report(DOCUMENT))
    assert text.startswith(
        "rmtrain rm_7b  a dry run: nothing is trained or written\n"
        "model          llama from scratch, 6.48B parameters, all train\n"
        "steps          1,911 of 32 comparisons, 61,135 an epoch\n"
    )
    assert text.endswith(
        "DDP on 8 does not fit: at most 134 of 80.0 GB; FSDP2 and ZeRO-2 would:\n--processes 8 --accelerate-config fsdp2\n"
    )
    assert all(len(line) <= 80 for line in text.splitlines())
    (line,) = (line for line in text.splitlines() if line.startswith("FSDP2"))
    assert line.split()[-4:] == ["0.00", "4.00", "24.5", "fits"], "guard: the table has a line for each strategy"


def test_what_fits_is_one_line_and_a_start_that_takes_more_is_said() -> None:
    started = {**share("fsdp2", 8, 24.5, fits=True), "total": 30 * GIGABYTE}
    text = render(dry_run_report({**DOCUMENT, "strategy": "fsdp2", "strategies": [started]}))
    assert text.splitlines()[-1] == "FSDP2 on 8 fits: at most 30.0 of 80.0 GB, before the first step; 24.5 in a step"


def test_where_nothing_fits_it_says_what_to_lower() -> None:
    text = render(dry_run_report({**DOCUMENT, "strategies": [share("ddp", 8, 134, fits=False)]}), width=200)
    what = "lower batching.max_tokens, set model.gradient_checkpointing, or train with lora"
    assert text.splitlines()[-1].endswith(f"nor does any other; {what}")


def test_a_measured_time_says_what_it_leaves_out() -> None:
    text = render(dry_run_report({**DOCUMENT, "seconds": 5400.0, "tokens_per_second": 305.5}), width=160)
    assert (
        "about 1h30m without evaluations: 306 tokens a second, measured in one process here; communication comes on top" in text
    )
    assert "time" not in render(dry_run_report(DOCUMENT)).split(), "guard: without a measurement there is no time"
