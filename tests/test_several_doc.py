"""docs/several.md is up to date: its configurations, options, launchers' options and exit codes exist."""

import re
import shlex

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from rmtrain import errors
from rmtrain.cli import app
from rmtrain.engine.launch import config_names, find_config
from tests.runs import ROOT

DOC = (ROOT / "docs/several.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0] for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
COMMANDS = [shlex.split(line) for line in LINES if re.match(r"(rmtrain|accelerate|torchrun) ", line)]
LAUNCHERS = {"accelerate": launch_command_parser, "torchrun": get_args_parser}


def test_table_lists_every_configuration() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", DOC, re.MULTILINE)) == config_names()
    assert (ROOT / "configs/accelerate/ddp.yaml").samefile(find_config("ddp")), "where the commands say they are"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_options_of_commands_exist(command: list[str]) -> None:
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


def test_exit_codes_are_those_of_errors() -> None:
    cells = re.findall(r"^\|.*\| ([\d, ]+) \|$", DOC, re.MULTILINE)
    ours = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")}
    documented = {int(number) for cell in cells for number in re.findall(r"\d+", cell)}
    assert documented <= ours
    assert {1, 6, 75} <= documented, "guard: the table was read"


def test_commands_of_all_launchers_were_read() -> None:
    assert {command[0] for command in COMMANDS} == {"rmtrain", "accelerate", "torchrun"}
    assert len(COMMANDS) >= 11
