"""Rows through a function of the user's own: the `prepare` key."""

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
"""Number of a row in its source, from 0; of several that were made of row 12, `12.0`, `12.1`, ..."""


def through_hook(row: Row, number: Number, source: Source) -> Iterator[tuple[Number, Row]]:
    """What the function of `prepare` makes of a row: itself or a changed one, several, or none. Its prints go to stderr.

    Raises:
        DataError: the function fails on the row, or gives something else.
        RecipeError: there is no such function.
    """
    hook = hook_of(source)
    function = load_function(hook)
    try:
        with redirect_stdout(sys.stderr):
            given = function(row)
    except Exception as error:  # whatever a function of the user's own may raise
        message = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_CHARACTERS]
        raise DataError(f"{source.title}:{number}: {_place(hook, error)}: {hook.function}: {message}") from error
    if given is None:
        return
    if isinstance(given, dict):
        yield number, given
    elif isinstance(given, list) and all(isinstance(one, dict) for one in given):
        yield from ((f"{number}.{place}", one) for place, one in enumerate(given))
    else:
        came = (
            f"a list with {_kind(next(one for one in given if not isinstance(one, dict)))}" if isinstance(given, list) else None
        )
        raise DataError(
            f"{source.title}:{number}: {hook.file}: {hook.function}: expected a dict, a list of dicts or None, got {came or _kind(given)}"
        )


def hook_of(source: Source) -> Hook:
    """The hook of a source that has `prepare`; raises RecipeError when its recipe was not loaded from a file."""
    if source.hook is None:
        raise RecipeError(
            f"{source.title}: prepare: its file lies beside the recipe; load the recipe from its file, by load_recipe"
        )
    return source.hook


def load_function(hook: Hook) -> Callable[[Row], Any]:
    """The function of a hook, from the bytes that were read with the recipe. No search path changes, and nothing is written.

    Raises:
        RecipeError: the file fails, or has no such function.
    """
    return _loaded(hook, str(hook.file))


@cache
def _loaded(hook: Hook, file: str) -> Callable[[Row], Any]:
    module = ModuleType(f"prepare_{sha256(hook.code).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # as dataclasses and pickle expect of a module
    try:
        exec(compile(hook.code, file, "exec"), module.__dict__)
    except Exception as error:  # whatever a file of the user's own may raise
        message = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_CHARACTERS]
        raise RecipeError(f"prepare: {_place(hook, error)}: {message}") from error
    function = getattr(module, hook.function, None)
    if not callable(function):
        raise RecipeError(f"prepare: {file} has no function {hook.function}")
    return function  # type: ignore[no-any-return]


def _place(hook: Hook, error: Exception) -> str:
    """The file, with the last of its lines that the error came through."""
    if isinstance(error, SyntaxError) and error.filename == str(hook.file):
        return f"{hook.file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(hook.file)]
    return f"{hook.file}:{lines[-1]}" if lines else str(hook.file)


def _kind(value: Any) -> str:
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeio' else 'a'} {type(value).__name__}"
