"""The example of docs/rl.md runs as written: best of n, and GRPO with rewards of `RewardScorer` and of a server."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from rmtrain.evaluation.scorer import RewardScorer
from tests.exports import tiny_export
from tests.runs import ROOT, environment_of_process, rmtrain
from tests.serving.running import served

EXAMPLE = ROOT / "examples/rl/end_to_end.py"
LINE = re.compile(r"^(?P<name>\w.*\w) +reward +(?P<reward>[+-]\d+\.\d\d)   kind +(?P<kind>\d+)%", re.MULTILINE)
NAMES = ["best of 1", "best of 2", "best of 4", "best of 8", "after GRPO"]


def table(model: Path, *options: str) -> dict[str, tuple[float, int]]:
    """Run the example, and return reward and percentage of kind reviews of each line."""
    command = [sys.executable, str(EXAMPLE), str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=560)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["name"]: (float(line["reward"]), int(line["kind"])) for line in LINE.finditer(done.stdout)}
    assert list(found) == NAMES, "guard: every line was read"
    return found


def test_example_runs_with_a_server(tmp_path: Path) -> None:
    """Few steps, and a model that was not trained: every reward comes from the server."""
    export = tiny_export(tmp_path / "model")
    with served(RewardScorer(str(export))) as server:
        address = f"http://127.0.0.1:{server.port}"
        found = table(export, "--server", address, "--policy-steps", "4", "--steps", "1", "--prompts", "2")
        answered = server.endpoints.answered
    rewards = [found[name][0] for name in NAMES[:4]]
    assert rewards == sorted(rewards)
    assert answered == len(NAMES) * 2 + 1, "two prompts of each line, and one step"
    assert rewards[0] < rewards[-1], "guard: completions have different rewards"


@pytest.mark.long
@pytest.mark.parametrize("with_server", [False, True], ids=["scorer", "server"])
def test_policy_learns_what_the_labels_mean(with_server: bool, tmp_path: Path) -> None:
    """Best of 8 and GRPO raise the reward, and with it the share of kind reviews."""
    run = tmp_path / "quickstart"
    trained = rmtrain("train", ROOT / "recipes/quickstart.yaml", f"run.output_dir={run}")
    assert trained.returncode == 0, trained.stderr
    with ExitStack() as stack:
        options = []
        if with_server:
            server = stack.enter_context(served(RewardScorer(str(run))))
            options = ["--server", f"http://127.0.0.1:{server.port}"]
        found = table(run, *options)
    (one, kind_of_one), (eight, kind_of_eight), (after, kind_after) = (found[NAMES[place]] for place in (0, 3, 4))
    assert min(eight, after) > one + 3
    assert min(kind_of_eight, kind_after) > kind_of_one + 25
    assert 20 < kind_of_one < 70, "guard: the policy writes reviews of both kinds"
