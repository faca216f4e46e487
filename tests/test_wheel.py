"""The wheel has every file of the package, and what it installs runs the README's commands in an empty folder."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.runs import ROOT
from tests.test_examples import pip_command
from tests.test_readme import COMMANDS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network; of a copy, since a build writes into its folder."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "rmtrain", source / "rmtrain", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], check=True, cwd=source, capture_output=True, timeout=300)
    (made,) = (source / "dist").glob("*.whl")
    return made


def test_wheel_has_every_file(wheel: Path) -> None:
    """Those that are not Python too: recipes with their data, the schema, accelerate configurations, pages."""
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("rmtrain/")}
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "rmtrain").rglob("*") if file.is_file()}
    assert packed == {file for file in files if "__pycache__" not in file}
    assert {file.rpartition(".")[2] for file in packed} >= {"py", "yaml", "jsonl", "json", "html", "css", "typed"}, "guard"
    assert "rmtrain/configs/recipes/data/sentiment_train.jsonl" in packed
    assert f"pip install {wheel.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command rmtrain in an environment made by the Dockerfile's command: the wheel, the dependencies of this one, no checkout."""
    folder = tmp_path_factory.mktemp("installed")
    wheels, dependencies = folder / "wheels", folder / "dependencies"
    wheels.mkdir()
    dependencies.mkdir()
    shutil.copy(wheel, wheels)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "rmtrain" not in entry.name and entry.suffix != ".pth":
            (dependencies / entry.name).symlink_to(entry)
    venv.create(folder / "venv")  # pip is among the dependencies; the one of `ensurepip` brings an old setuptools
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(str(dependencies))
    command = [folder / "venv/bin/python", "-m", *pip_command(wheels)]
    subprocess.run(command, check=True, env=clean_environment(folder), timeout=600)
    assert (site / "rmtrain/configs/recipes/quickstart.yaml").is_file()
    return folder / "venv/bin/rmtrain"


def clean_environment(home: Path) -> dict[str, str]:
    """Without the checkout on the path, and without this user's caches."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME", "RMTRAIN_CACHE")}
    return {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.long
def test_installed_wheel_runs_the_readme(program: Path, tmp_path: Path) -> None:
    """Every command of the README, in its order, in an empty folder."""
    environment = clean_environment(tmp_path)
    where = [program.with_name("python"), "-c", "import rmtrain; print(rmtrain.__path__[0])"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    assert found.startswith(str(program.parents[1])), "guard: not the checkout"
    commands = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("rmtrain ")]
    for command in commands:
        ended = subprocess.run([program, *command], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900)
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    assert (tmp_path / "runs/mine/model/model.safetensors").is_file()
    assert len(commands) > 8, "guard"
