"""A function of the user's own that prepares rows: named in the recipe, read from a file beside it, carried along as bytes."""

from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Hook:
    """The file of a `prepare` key as it was when the recipe was loaded, so that what is hashed, run and copied is the same.

    Two are equal when their names and bytes are, wherever the file lay.
    """

    name: str
    """`module:function`."""
    code: bytes
    """Content of the file."""
    file: Path = field(compare=False)
    """Where it was read."""

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.name.partition(":")[2]


def file_of(name: str) -> str:
    """The file of a `prepare` key: `module:function` is in `module.py`."""
    return f"{name.partition(':')[0]}.py"


def read_hook(name: str, directory: Path | None) -> Hook:
    """The hook of a `prepare` key, from `module.py` in the directory of the recipe and from nowhere else.

    Args:
        name: `module:function`.
        directory: where the recipe lies; None: it is no file.

    Raises:
        ValueError: there is no such file, or it cannot be read, in one line.
    """
    if directory is None:
        raise ValueError(f"{file_of(name)} must lie beside the recipe, and this recipe is no file; load it from one")
    file = directory / file_of(name)
    try:
        with file.open("rb") as stream:
            code = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"expected {file_of(name)} beside the recipe; {file}: {error.strerror}") from error
    if len(code) > MAX_BYTES:
        raise ValueError(f"{file}: expected at most {MAX_BYTES // 1024} KiB of code; import the rest")
    return Hook(name, code, file)
