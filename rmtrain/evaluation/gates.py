"""Gates: values that an evaluation has to reach."""

from collections.abc import Mapping
from typing import Any, TypeVar

from rmtrain.recipe.schema import LOWER_IS_BETTER

GateName = TypeVar("GateName", bound=str)


def check_gates(values: Mapping[str, Any], gates: Mapping[GateName, float]) -> dict[str, dict[str, Any]]:
    """Return `required`, `value` (None: nothing to compute it from) and `passed` of each gate; a loss passes up to its bound."""
    results: dict[str, dict[str, Any]] = {}
    for name, required in gates.items():
        value = values.get(name)
        passed = value is not None and (value <= required if name in LOWER_IS_BETTER else value >= required)
        results[name] = {"required": required, "value": value, "passed": passed}
    return results
