"""Functions of the user, loaded from code that was read with the recipe; and `prepare`, which is called for each row."""

import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from types import ModuleType
from typing import Any

from rmtrain.data.rows.readers import Row
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Source
from rmtrain.recipe.section import Hook

MESSAGE_CHARACTERS = 200

Number = int | str
"""Number of a row in its source, from 0; rows that were made from row 12 are `12.0`, `12.1`, ..."""


def through_hook(row: Row, number: Number, source: Source) -> Iterator[tuple[Number, Row]]:
    """Yield the rows that the `prepare` function returns for a row: one, several, or none. Its prints go to stderr.

    Raises DataError where it fails or returns anything but a dict, a list of dicts or None, and RecipeError where it does not exist.
    """
    hook = hook_of(source)
    function = load_function(hook.code, hook.function, str(hook.file))
    try:
        with redirect_stdout(sys.stderr):
            result = function(row)
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"{source.title}:{number}: {at_line(str(hook.file), error, f'{hook.function}: ')}") from error
    if result is None:
        return
    is_list = isinstance(result, list)
    for index, made in enumerate(result if is_list else [result]):
        if not isinstance(made, dict):
            returned = f"{'a list with ' if is_list else ''}{type(made).__name__}"
            expected = "expected a dict, a list of dicts or None"
            raise DataError(f"{source.title}:{number}: {hook.file}: {hook.function}: {expected}, got {returned}")
        yield (f"{number}.{index}" if is_list else number), made


def hook_of(source: Source) -> Hook:
    """Return the hook of a source that has `prepare`; raises RecipeError when its recipe was not loaded from a file."""
    if source.hook is None:
        raise RecipeError(f"{source.title}: prepare: needs a recipe that is a file, next to its code; load it with load_recipe")
    return source.hook


@cache
def load_function(code: bytes, name: str, file: str, key: str = "prepare") -> Callable[..., Any]:
    """Return the function of a recipe's `key` from the bytes that were read with it, which changes no search path and writes nothing.

    Raises RecipeError where running the file fails, or it has no such function.
    """
    module = ModuleType(f"prepare_{hashlib.sha256(code).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and pickle look up the module of a class there
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except Exception as error:  # the user's file may raise anything
        raise RecipeError(f"{key}: {at_line(file, error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{key}: {file} has no function {name}")
    return function  # type: ignore[no-any-return]


def at_line(file: str, error: Exception, name: str = "") -> str:
    """Return an error in one line, after the file and the last of its lines in the traceback."""
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f"{file}:{lines[-1]}" if lines else file
    return f"{place}: {name}" + " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_CHARACTERS]
