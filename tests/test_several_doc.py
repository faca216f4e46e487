"""docs/several.md names what is there: configurations, options, launchers' options, exit codes."""

import re
import shlex

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from rmtrain import errors
from rmtrain.cli import app
from rmtrain.engine.launch import find, names
from tests.runs import ROOT

DOC = (ROOT / "docs/several.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0] for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
COMMANDS = [
    shlex.split(line.removeprefix("srun ")) for line in LINES if re.match(r"(srun )?(rmtrain|accelerate|torchrun) ", line)
]
LAUNCHERS = {"accelerate": launch_command_parser, "torchrun": get_args_parser}


def test_each_configuration_is_in_the_table_of_when_to_use_it() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE)) == names()
    assert (ROOT / "configs/accelerate/ddp.yaml").samefile(find("ddp")), "where the commands say they are"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_has_options_that_there_are(command: list[str]) -> None:
    launcher, verb = command[0], command[command.index("rmtrain") + 1]
    ours = command[command.index("rmtrain") :]
    known = {option for parameter in typer.main.get_command(app).commands[verb].params for option in parameter.opts}
    assert {word for word in ours if word.startswith("-")} <= known
    if launcher in LAUNCHERS:
        theirs = command[2 if launcher == "accelerate" else 1 : command.index("-m")]
        parsed, unknown = LAUNCHERS[launcher]().parse_known_args([*theirs, "-m", "rmtrain"])
        assert not unknown
        assert parsed.module
        config = getattr(parsed, "config_file", None)
        assert config is None or (ROOT / config).is_file()


def test_its_exit_codes_are_those_of_errors() -> None:
    told = re.findall(r"^\|.*\| ([\d, to]+|that of one process: 2 to 6) \|$", DOC, re.MULTILINE)
    ours = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")}
    found = {int(number) for cell in told for number in re.findall(r"\d+", cell)}
    assert found <= ours | {130, 143}
    assert {1, 6, 75, 130, 143} <= found, "guard: the table was read"


def test_the_commands_were_read() -> None:
    assert {command[0] for command in COMMANDS} == {"rmtrain", "accelerate", "torchrun"}
    assert len(COMMANDS) >= 10
