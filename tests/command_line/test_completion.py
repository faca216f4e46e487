"""After Tab, each shell offers keys, values and names by the protocol of its script, quickly and without a word of an error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rmtrain.command_line.completion import CONFIGURATIONS
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS as MEASURED
from rmtrain.recipe.public_benchmarks import BENCHMARK_NAMES
from tests.runs import ROOT, environment_of_process

SHELLS = ("bash", "zsh", "fish")
RECIPE = "recipes/quickstart.yaml"


def offered(words: list[str], shell: str = "bash", cwd: Path = ROOT, **stray: str) -> list[str]:
    """Run rmtrain as the script of a shell does after Tab at the end of the last word, and return what is offered."""
    line = ["rmtrain", *words]
    variables = {"_RMTRAIN_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        variables |= {"COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(line) - 1)}
    else:
        variables |= {"_TYPER_COMPLETE_ARGS": " ".join(line), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-m", "rmtrain"]
    environment = environment_of_process(**(variables | stray))
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", RECIPE, "optimizer.l"], ["optimizer.lr="]),
        (["train", RECIPE, "optimizer.schedule", "=", "cosine_"], ["cosine_with_restarts"]),
        (
            ["train", RECIPE, "model.gradient_check"],
            [f"model.gradient_checkpointing={value}" for value in ("", "true", "false")],
        ),
        (["train", RECIPE, "--accelerate-config", "fsdp2"], ["fsdp2", "fsdp2_offload"]),
        (["eval", "runs/x", "--benchmark", "rewardbench2,rm_"], ["rewardbench2,rm_bench"]),
        (["eval", "runs/x", "--fail-under", "spearman_w"], ["spearman_within="]),
        (["inspect", RECIPE, "--source", ""], ["sentiment_train", "sentiment_test"]),
        (["inspect", RECIPE, "--split", "e"], ["eval"]),
        (["export", "runs/x", "--dtype", "b"], ["bfloat16"]),
        (["init", "--recipe", "quick"], ["quickstart"]),
        (["train", RECIPE, "--sweep", "optimizer.l"], ["optimizer.lr="]),
        (["train", RECIPE, "data.train.1.dedu"], [f"data.train.1.dedup={value}" for value in ("", "true", "false")]),
        (["train", RECIPE, "data.train.1.format", "=", "ra"], ["ranked"]),
        (["schema", "lora.r"], ["lora.rank", "lora.rslora"]),
    ],
)
def test_bash_offers_words(words: list[str], expected: list[str]) -> None:
    assert offered(words) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_offer_keys_and_values(shell: str) -> None:
    """Zsh and fish do not split words at `=`."""
    assert any("optimizer.lr" in line for line in offered(["train", RECIPE, "optimizer.l"], shell))
    if shell != "bash":
        assert any("optimizer.schedule=cosine" in line for line in offered(["train", RECIPE, "optimizer.schedule=co"], shell))


@pytest.mark.parametrize(
    "words", [["train", ""], ["train", "recipes/q"], ["nothing", "z"], ["inspect", "absent.yaml", "--source", ""]]
)
def test_files_are_left_to_the_shell(words: list[str]) -> None:
    """Where nothing is known, nothing is offered or printed, and the shell completes files."""
    assert not "".join(offered(words)).strip()


def test_broken_recipe_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("run: [")
    assert not "".join(offered(["inspect", "broken.yaml", "--source", ""], cwd=tmp_path)).strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["base.yaml"], ["sentiment_train", "sentiment_test"]),
        (["base.yaml", "mine.yaml"], ["mine", "sentiment_test"]),
        (["base.yaml", "data.train.0.tag", "=", "named"], ["named", "sentiment_test"]),
        (["--recipe", "base.yaml"], ["sentiment_train", "sentiment_test"]),
    ],
)
def test_sources_are_those_of_the_line(words: list[str], expected: list[str], tmp_path: Path) -> None:
    """Of all recipe files that the line names, with its overrides, as bash splits them."""
    (tmp_path / "base.yaml").write_text((ROOT / RECIPE).read_text())
    (tmp_path / "mine.yaml").write_text("data: {train: [{path: x.jsonl, tag: mine}]}\n")
    assert offered(["inspect", *words, "--source", ""], cwd=tmp_path) == expected


@pytest.mark.parametrize("words", [["train", "**"], ["train", "["], ["train", "'open"], ["inspect", "x" * 5000, "--source", ""]])
def test_odd_words_print_no_error(words: list[str]) -> None:
    assert not "".join(offered(words)).strip()


def test_variables_of_launchers_print_no_error() -> None:
    """A shell on a cluster may have them. A wrong variable of the protocol ends without a word as well."""
    assert offered(["train", RECIPE, "optimizer.l"], RANK="3", WORLD_SIZE="x") == ["optimizer.lr="]
    assert offered(["train", RECIPE, "optimizer.l"], COMP_CWORD="x") == []


def test_completion_imports_no_heavy_library() -> None:
    """Also where it reads a recipe."""
    heavy = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy"}
    line = f"rmtrain inspect {RECIPE} --source "
    environment = environment_of_process(_RMTRAIN_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    command = [sys.executable, "-X", "importtime", "-m", "rmtrain"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    imported = {row.rpartition("|")[2].strip() for row in ended.stderr.splitlines()}
    assert "sentiment_train" in ended.stdout
    assert not imported & heavy
    assert "rmtrain.recipe.load" in imported, "guard: imports were recorded"


def test_scripts_of_shells_are_printed() -> None:
    """`--show-completion` prints what `--install-completion` installs."""
    for shell in SHELLS:
        environment = environment_of_process(_RMTRAIN_COMPLETE=f"source_{shell}")
        printed = subprocess.run(
            [sys.executable, "-m", "rmtrain"], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
        )
        assert "_RMTRAIN_COMPLETE=complete_" in printed.stdout


LINE = "rmtrain train r.yaml optimizer.l"
COMPLETES = {
    "bash": f'eval "$(_RMTRAIN_COMPLETE=source_bash rmtrain)"; COMP_WORDS=({LINE}); COMP_CWORD=3; '
    '_rmtrain_completion rmtrain; printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": f'env _RMTRAIN_COMPLETE=source_fish rmtrain | source; complete -C "{LINE}"',
}


@pytest.mark.parametrize("shell", COMPLETES)
def test_shell_completes_a_line(shell: str, tmp_path: Path) -> None:
    """The script itself, in a real shell, gives the words that are left."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}; on Debian: apt-get install {shell}")
    program = tmp_path / "rmtrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rmtrain "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", COMPLETES[shell]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment_of_process(PATH=path, HOME=str(tmp_path)),
        timeout=60,
    )
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == ["optimizer.lr="]


def test_known_names_are_complete() -> None:
    """The names that completion offers without loading torch are those of the package."""
    assert (*MEASURED,) == BENCHMARK_NAMES
    assert len(list(CONFIGURATIONS.glob("*.yaml"))) > 5, "guard"
