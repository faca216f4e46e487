"""The user's own function on each row: the `prepare` key of a source."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from hashlib import sha256
from types import ModuleType
from typing import Any

from rmtrain.data.rows.readers import Row
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Source
from rmtrain.recipe.sources import Hook

MESSAGE_CHARACTERS = 200

Number = int | str
"""Number of a row in its source, from 0; rows that were made from row 12 are `12.0`, `12.1`, ..."""


def through_hook(row: Row, number: Number, source: Source) -> Iterator[tuple[Number, Row]]:
    """Yield the rows that the `prepare` function returns for a row: one, several, or none. What it prints goes to stderr.

    Raises:
        DataError: the function fails on the row, or returns anything but a dict, a list of dicts or None.
        RecipeError: the function does not exist.
    """
    hook = hook_of(source)
    function = load_function(hook)
    try:
        with redirect_stdout(sys.stderr):
            result = function(row)
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"{source.title}:{number}: {_location(hook, error)}: {hook.function}: {_one_line(error)}") from error
    rows = result if isinstance(result, list) else [result]
    if result is None:
        return
    for index, made in enumerate(rows):
        if not isinstance(made, dict):
            name = type(made).__name__
            returned = f"a list with {name}" if rows is result else name
            expected = "expected a dict, a list of dicts or None"
            raise DataError(f"{source.title}:{number}: {hook.file}: {hook.function}: {expected}, got {returned}")
        yield (f"{number}.{index}" if rows is result else number), made


def hook_of(source: Source) -> Hook:
    """Return the hook of a source that has `prepare`; raises RecipeError when its recipe was not loaded from a file."""
    if source.hook is None:
        raise RecipeError(f"{source.title}: prepare: needs a recipe that is a file, next to its code; load it with load_recipe")
    return source.hook


def load_function(hook: Hook) -> Callable[[Row], Any]:
    """Return the function of a hook, from the bytes that were read with the recipe. No search path changes, and nothing is written.

    Raises:
        RecipeError: running the file fails, or it has no such function.
    """
    return _load_once(hook, str(hook.file))


@cache
def _load_once(hook: Hook, file: str) -> Callable[[Row], Any]:
    # hooks are equal when their bytes are; `file` is part of the key because tracebacks name it
    module = ModuleType(f"prepare_{sha256(hook.code).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and pickle look up the module of a class there
    try:
        exec(compile(hook.code, file, "exec"), module.__dict__)
    except Exception as error:  # the user's file may raise anything
        raise RecipeError(f"prepare: {_location(hook, error)}: {_one_line(error)}") from error
    function = getattr(module, hook.function, None)
    if not callable(function):
        raise RecipeError(f"prepare: {file} has no function {hook.function}")
    return function  # type: ignore[no-any-return]


def _location(hook: Hook, error: Exception) -> str:
    """Return the hook's file, with the last of its lines in the traceback of the error."""
    if isinstance(error, SyntaxError) and error.filename == str(hook.file):
        return f"{hook.file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(hook.file)]
    return f"{hook.file}:{lines[-1]}" if lines else str(hook.file)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_CHARACTERS]
