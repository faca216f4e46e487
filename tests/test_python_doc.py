"""docs/python.md: its script runs as it stands, and its table has every public name."""

import re
from pathlib import Path

import rmtrain
from tests.forks import fork_server
from tests.runs import ROOT

DOC = (ROOT / "docs/python.md").read_text(encoding="utf-8")


def test_script_of_the_guide_runs(tmp_path: Path) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
    (tmp_path / "script.py").write_text(script)
    ended = fork_server().run(program=str(tmp_path / "script.py"), cwd=tmp_path, HOME=str(tmp_path))
    assert ended.code == 0, ended.stderr
    printed = dict(
        line.split(maxsplit=1) for line in ended.stdout.splitlines() if line.startswith(("accuracy", "on", "ref", "rew"))
    )
    assert printed["refused"].startswith("4 run.output_dir: ")
    assert printed["on"] == "a file 200"
    alone, by_prompt = re.findall(r"\[(.*?)\]", printed["reward"])
    assert float(alone) == float(by_prompt)
    assert (tmp_path / "runs/second/model/model.safetensors").is_file(), "guard: it ran to its end"


def test_guide_lists_every_public_name() -> None:
    documented = set(re.findall(r"`(\w+)", "".join(line for line in DOC.splitlines() if line.startswith("| `"))))
    assert {*rmtrain.__all__} - {"__version__"} <= documented
    assert {*rmtrain.__all__} <= set(dir(rmtrain))
    assert re.match(r"\d+\.\d+", rmtrain.__version__)
    assert rmtrain.errors.DataError is rmtrain.DataError
    assert all(getattr(rmtrain, name) is not None for name in rmtrain.__all__)
