"""Help texts, and errors of the command line itself."""

import re

import pytest
import typer

from rmtrain import errors
from rmtrain.cli import app
from rmtrain.command_line.verbs import PANELS
from rmtrain.errors import EXIT_CODES
from tests.forks import rmtrain
from tests.messages import ROOT

VERBS = ("init", "preprocess", "inspect", "train", "runs", "export", "eval", "score", "serve", "schema")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_whole_and_in_groups(verb: str) -> None:
    """`-h` and `--help` print the same at 80 columns: sentences, known groups, an example and the exit codes."""
    short, long = (rmtrain(*([verb] if verb else []), option, COLUMNS="80") for option in ("-h", "--help"))
    assert (short.returncode, short.stderr, short.stdout) == (0, "", long.stdout)
    lines = short.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in short.stdout
    headings = [line.rstrip(":") for line in lines if re.fullmatch(r"[A-Z][A-Za-z ]+:", line)]
    assert headings[-2:] == ["Example", "Exit codes"]
    assert headings[:-2] == (["Options", "Commands"] if not verb else [name for name in PANELS if name in headings])
    assert lines[lines.index("Example:") + 1].startswith(f"  rmtrain {verb}")
    codes = [int(line.split()[0]) for line in lines[lines.index("Exit codes:") + 1 :]]
    assert codes == list(EXIT_CODES)
    assert not re.search(r"<(int|str|path|list)", short.stdout), "types of Python"
    text = " ".join(short.stdout.partition("\nExample:")[0].split())
    assert text.endswith(".") or verb in ("", "schema"), "guard: the last option ends with a sentence"


def test_every_option_has_a_group() -> None:
    known = {name for names in PANELS.values() for name in names}
    options = {name for verb in typer.main.get_command(app).commands.values() for p in verb.params for name in p.opts}  # type: ignore[attr-defined]
    long = {name for name in options if name.startswith("--")} - {"--config"}
    assert long <= known
    assert known - long == {"--help", "--version"}


def test_exit_codes_are_those_of_errors_and_readme() -> None:
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RmtrainError)}
    assert codes <= set(EXIT_CODES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    listed = [int(code) for code in re.findall(r"(?:^|· )(\d+) ", readme, re.MULTILINE)]
    assert listed == list(EXIT_CODES)
    assert len(codes) == 7, "guard"


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["inspect", "r.yaml", "--limit", "x"], "--limit: "),
        (["train", "r.yaml", "--processes", "0"], "--processes: "),
        (["score"], "MODEL"),
        (["score", "m"], "INPUT"),
        (["no\x1b]0;t\x07pe"], "no\\x1b]0;t\\x07pe"),
        (["train", "r.yaml", "--resume"], "--resume"),
    ],
)
def test_usage_errors_are_one_line(words: list[str], place: str) -> None:
    ended = rmtrain(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert place in line
    assert line.endswith("--help`")


def test_without_arguments_help_is_printed() -> None:
    ended = rmtrain()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == rmtrain("-h").stdout
