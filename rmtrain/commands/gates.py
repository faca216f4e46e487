"""Gates that were missed end a command, after everything else is done."""

from typing import Any

from rmtrain.commands.ending import is_other_rank
from rmtrain.errors import GateMissed, RmtrainError


def fail_on_missed(gates: dict[str, dict[str, Any]], hub_problem: str | None = None) -> None:
    """Raise GateMissed with a line per gate that was missed, saying by how much; RmtrainError where only the upload failed.

    Of several ranks the main one does: the others are done by then.
    """
    if is_other_rank():
        return
    missed = [_missed(name, **gate) for name, gate in gates.items() if not gate["passed"]]
    problems = [*missed, *([hub_problem] if hub_problem else [])]
    if problems:
        raise (GateMissed if missed else RmtrainError)(*problems)


def _missed(name: str, required: float, value: float | None, passed: bool) -> str:
    if value is None:
        return f"gate {name}: required {required}, but there was nothing to compute it from"
    return f"gate {name}: required {required}, got {value:.4f}, missed by {abs(value - required):.4f}"
