"""Several ranks of one run share the making of its data: one makes it, the others wait for its file, in no collective."""

import os
import subprocess
from pathlib import Path

from rmtrain.recipe.load import dump_recipe
from tests.helpers import byte_bpe
from tests.runs import ROOT, metrics_of, tiny_recipe, torchrun

ROWS = 60
SLOW = """
import os, time

def rows(row):
    with open(os.environ["TRACE"], "a") as trace:
        trace.write(os.environ["RANK"] + "\\n")
    time.sleep(0.03)
    return row
"""


def test_trap_43_two_ranks_prepare_the_data_once_and_neither_waits_in_a_collective(tmp_path: Path) -> None:
    byte_bpe().save_pretrained(tmp_path / "tokenizer")
    recipe = tiny_recipe(tmp_path, rows=ROWS, model={"tokenizer": str(tmp_path / "tokenizer")})
    text = dump_recipe(recipe).replace("prepare: null", "prepare: slow:rows", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "TRACE": str(tmp_path / "trace"),
    }
    command = [*torchrun(2), "-m", "rmtrain", "train", str(tmp_path / "recipe.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    ranks = (tmp_path / "trace").read_text().split()
    assert len(ranks) == ROWS, "each row was prepared once"
    assert len(set(ranks)) == 1, "by one rank"
    says_so = "another process is making" in result.stderr
    assert says_so == (ranks[0] != "0"), "the other one waited for its file, and of the two rank 0 says what it does"
    assert len(os.listdir(recipe.data.cache_dir)) == 1
    assert metrics_of(tmp_path / "run"), "guard: the run went on"
    assert (tmp_path / "run/slow.py").read_text() == SLOW, "what repeats the run lies in its directory"
