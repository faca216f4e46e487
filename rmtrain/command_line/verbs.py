"""How verbs appear on the command line: overrides written as options, unknown options explained, and help in groups.

Nothing heavy is imported here.
"""

import re
from itertools import pairwise, takewhile
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rmtrain.errors import EXIT_CODES, RecipeError
from rmtrain.recipe.explain import explain_option

PANELS = {
    "Arguments": ("--recipe", "--list", "--model"),
    "What to evaluate": ("--data", "--scores", "--benchmark", "--data-dir", "--compare"),
    "Rows to show": ("--row", "--find", "--dropped", "--longest", "--random", "--seed", "--source", "--split", "--limit"),
    "Optimizer step": ("--step", "--world-size"),
    "How texts are read": ("--cut", "--skip-bad", "--max-length", "--precision", "--allow-template-change"),
    "Start and resume": ("--fresh", "--resume", "--deterministic"),
    "Server": ("--host", "--port", "--queue", "--timeout", "--max-tokens"),
    "Processes": ("--processes", "--accelerate-config"),
    "Sweep": ("--sweep",),
    "Audit": ("--folds", "--effect"),
    "Dry run": ("--dry-run", "--gpu-memory", "--measure"),
    "Export": ("--adapter", "--dtype", "--push"),
    "How rows are shown": ("--ids", "--side-by-side"),
    "Output": (
        *("--output", "--best-of", "--export", "--plot", "--report", "--fail-under", "--allow-different-settings"),
        *("--sort", "--csv", "--json", "--version", "--help"),
    ),
}
"""Groups of the options in `--help`, of all verbs, in their order."""
TYPE = re.compile(r" <([^<>]*)>")
TYPES = {"int": " N", "int range": " N", "path": " PATH", "str": " TEXT"}
"""Words for the types of values; an argument says with its name what it is."""
DASHED = re.compile(r"^--(?=[A-Za-z_]\w*\.[\w.-]+(=|$))", re.ASCII)
"""The dashes of an override that is written as an option, `--a.b=v` or `--a.b v`."""
WITH_OVERRIDES = ("preprocess", "inspect", "train", "audit", "eval")


class Verb(TyperCommand):
    """A verb. Its help has the options in groups, an example (the epilog) and the exit codes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options by panel, each with one word for the kind of its value."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels = (panel for panel, names in PANELS.items() if not {*names}.isdisjoint(parameter.opts))
                kind = "Arguments" if parameter.param_type_name == "argument" else next(panels, "Output")
                groups.setdefault(kind, []).append((TYPE.sub(lambda found: TYPES.get(found[1], ""), record[0]), record[1]))
        for title in sorted(groups, key=list(PANELS).index):
            with formatter.section(title):
                formatter.write_dl(groups[title])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, and the exit codes."""
        with formatter.section("Example"):
            formatter.write(f"{'':>{formatter.current_indent}}{self.epilog}\n")
        _write_exit_codes(formatter)


class Verbs(TyperGroup):
    """All verbs. They take overrides also as options, as agents of sweeps write them, and explain options that do not exist."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Remove the dashes of overrides; raise RecipeError with a line for each unknown option."""
        words: list[str] = []
        for word in args:
            if words and DASHED.match(words[-1]) and "=" not in words[-1]:
                words[-1] += f"={word}"
            else:
                words.append(word)
        words = [DASHED.sub("", word) for word in words]
        verb = self.get_command(ctx, words[0]) if words else None
        if verb is not None and not ctx.resilient_parsing:
            known = {"--help", *(name for option in verb.params for name in (*option.opts, *option.secondary_opts))}
            valued = {name for option in verb.params if not getattr(option, "is_flag", True) for name in option.opts}
            pairs = pairwise(takewhile("--".__ne__, words))
            options = [word.partition("=")[0] for before, word in pairs if word.startswith("--") and before not in valued]
            unknown = [option for option in options if option not in known]
            if unknown:
                raise RecipeError(*(f"{name}: {explain_option(name, known, words[0] in WITH_OVERRIDES)}" for name in unknown))
        return super().parse_args(ctx, words)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write where to begin, and the exit codes."""
        with formatter.section("Example"):
            formatter.write(f"{'':>{formatter.current_indent}}{self.epilog}\n")
        _write_exit_codes(formatter)


def usage_problem(error: Any) -> str:
    """Return the line for an error of click: the option or argument, what was expected, and where the help is."""
    option, context = getattr(error, "param", None), getattr(error, "ctx", None)
    problem = error.format_message().rstrip(".")
    if option is not None and error.message:
        problem = f"{option.opts[-1]}: {error.message.replace('Input should be ', 'expected ')}"
    return f"{problem}; see `{context.command_path if context else 'rmtrain'} --help`"


def _write_exit_codes(formatter: Any) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
