"""Work of the main process: every process learns its result, or fails with its error."""

import subprocess
from pathlib import Path

import pytest
from accelerate import Accelerator

from rmtrain.engine.distributed import run_on_main
from rmtrain.errors import TryAgain
from tests.runs import ROOT, environment_of_process, torchrun

SCRIPT = """
import sys
from pathlib import Path
from accelerate import Accelerator
from rmtrain.engine.distributed import run_on_main
from rmtrain.errors import TryAgain

accelerator, rank_file = Accelerator(cpu=True), Path(sys.argv[1])
done = []
first = run_on_main(accelerator, lambda: done.append(1) or {"answer": 42})
def fail():
    raise TryAgain("the disk is full")
try:
    run_on_main(accelerator, fail)
except TryAgain as error:
    said = error.problems
rank_file.with_suffix(f".{accelerator.process_index}").write_text(f"{first} {said} {len(done)}")
accelerator.state.destroy_process_group()  # as a run does: threads of a group that is left at exit can abort the process
"""


def test_alone_it_is_a_call() -> None:
    def fail() -> None:
        raise TryAgain("full")

    assert run_on_main(Accelerator(cpu=True), lambda: 7) == 7
    with pytest.raises(TryAgain, match="full"):
        run_on_main(Accelerator(cpu=True), fail)


def test_trap_46_an_error_of_the_main_process_reaches_all_and_none_waits(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*torchrun(2), str(tmp_path / "script.py"), str(tmp_path / "rank.txt")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(ACCELERATE_USE_CPU="true"), timeout=120
    )
    assert result.returncode == 0, result.stderr
    main, other = ((tmp_path / f"rank.{rank}").read_text() for rank in (0, 1))
    assert main == "{'answer': 42} ('the disk is full',) 1"
    assert other == "{'answer': 42} ('the disk is full',) 0", "guard: the other process did not do the work"
