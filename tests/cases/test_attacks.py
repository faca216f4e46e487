"""The scripts of ../shared/cases/attacks, run as a user would: each shows a fault that is no longer there."""

import os
import re
import subprocess
import sys

import pytest

from tests.forks import rmtrain
from tests.runs import ROOT, environment_of_process

ATTACKS = ROOT.parent / "shared" / "cases" / "attacks"
EXPECTED = {
    "cache-key-lacks-format": [r"^data\.json rc 0$", r"^data\.json with an empty cache rc 0$"],
    "cache-poisoning": [r"^rc [1-9]\d* \(expected: refused\)$"],
    "data-changes-while-read": [r"^--- first rc (75|0)$", r"^20000 train\.jsonl$", r"kept +20,000"],
    "markup-in-notices": [r"^rc 0$", r"^runs\[v2\]\.old-1$"],
    "reload-check-killed": [r"^rc 75 error: .*SIGKILL"],
    "score-float-overflow": [r"^rc 0 ", r"^2 out\.jsonl$"],
    "score-fresh-wipes-its-input": [r"^rc 2, input now 30 bytes\n(?s:.*)^rc 2, input now 30 bytes$"],
    "score-output-removed": [r"^rc (75|0)$"],
    "score-output-truncated": [r"^rc (75|0)$", r"^again rc 0$", r"^0$"],
    "sighup": [
        rf"^{name} rc {code} checkpoints: step-\d+ error: " for name, code in (("HUP", 129), ("USR1", 138), ("XCPU", 152))
    ],
    "template-limits": [r"(?:^rc 3 after \d+ s  .*\n){3}"],
    "terminal-escapes": [r"52;c;"],
}
"""What each script prints now. Where a script can come too late, the command had ended: 0."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The command, and a model of the quickstart's recipe."""
    folder = tmp_path_factory.mktemp("attacks")
    trained = rmtrain(
        "train", ROOT / "recipes/quickstart.yaml", f"run.output_dir={folder}/run", "training.max_steps=2", "evaluation.gates={}"
    )
    assert trained.returncode == 0, trained.stderr
    command = folder / "rmtrain"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rmtrain "$@"\n')
    command.chmod(0o755)
    return environment_of_process(RMTRAIN=str(command), PYTHON=sys.executable, MODEL=f"{folder}/run/model")


@pytest.mark.long
@pytest.mark.parametrize("name", EXPECTED)
def test_attack_does_no_harm(name: str, environment: dict[str, str]) -> None:
    if not ATTACKS.is_dir():
        pytest.skip("needs the attacks: put them into ../shared/cases, next to the checkout")
    script = ATTACKS / f"{name}.sh"
    ended = subprocess.run(["bash", script], capture_output=True, text=True, errors="replace", env=environment, timeout=550)
    printed = ended.stdout + ended.stderr
    print(printed)
    assert f"{ROOT / 'rmtrain'}/" not in printed, "no traceback of ours; the scripts' own may end in one"
    assert "\x1b" not in printed
    assert "^[" not in printed, "a control character, as cat -v shows it"
    for pattern in EXPECTED[name]:
        assert re.search(pattern, printed, re.MULTILINE), pattern


def test_every_attack_is_tried() -> None:
    if not ATTACKS.is_dir():
        pytest.skip("needs the attacks: put them into ../shared/cases, next to the checkout")
    assert {path.stem for path in ATTACKS.glob("*.sh")} - {"lib"} == set(EXPECTED)
    assert os.access(ATTACKS / "lib.sh", os.R_OK), "guard"
