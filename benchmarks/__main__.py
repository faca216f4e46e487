"""`python -m benchmarks [--quick] [NAME ...]`: the benchmarks that fit this machine, one after the other, each as a process of its own.

Each prints its table, and writes its JSON into runs/bench.
"""

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

from benchmarks.common import ROOT, console

HERE, RESULTS = Path(__file__).parent, ROOT / "runs" / "bench"
RUNS = {
    "startup": ["startup.py"],
    "plan_scale": ["plan_scale.py"],
    "preprocess_throughput": ["preprocess_throughput.py"],
    "preprocess_scale": ["preprocess_scale.py", "--pairs=200000"],
    "groups": ["groups.py"],
    "memory": ["memory.py"],
    "coverage": ["coverage.py"],
    "memory_estimate": ["memory_estimate.py"],
    "scaling": ["scaling.py"],
    "matmul_efficiency": ["matmul_efficiency.py"],
    "train_throughput_256": ["train_throughput.py", "--hidden=256"],
    "train_throughput_four_responses": ["train_throughput.py", "--hidden=256", "--responses=4"],
    "train_throughput_512": ["train_throughput.py", "--hidden=512", "--steps=3"],
    "serve": ["serve.py"],
    "gpu": ["gpu.py"],
}


def main() -> None:
    """Run what was named, or everything that this machine can; fail if one of them did."""
    made = ArgumentParser(description=__doc__)
    made.add_argument("--quick", action="store_true", help="sizes that only show that everything runs")
    made.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    arguments = made.parse_args()
    if unknown := set(arguments.names) - set(RUNS):
        made.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(RUNS)}")
    fitting = [name for name in RUNS if name != "gpu" or torch.cuda.is_available()]
    failed = []
    for name in arguments.names or fitting:
        script, *options = RUNS[name]
        console.rule(name)
        file = RESULTS / ("quick" if arguments.quick else "") / f"{name}.json"  # quick figures never stand in for real ones
        command = [sys.executable, str(HERE / script), f"--json={file}", *options, *(["--quick"] if arguments.quick else [])]
        if subprocess.run(command).returncode:
            failed.append(name)
    if "gpu" not in fitting and not arguments.names:
        console.print("gpu: left out, there is no CUDA device")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
