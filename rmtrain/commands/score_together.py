"""The files of `rmtrain score` and the processes that share its work: the main one reads and writes, and all learn what came of it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from accelerate import Accelerator

from rmtrain.commands.score_files import STANDARD, Chunk, Done, Sink, in_chunks, opened, output, read_lines, until_closed
from rmtrain.engine.stopping import Stop
from rmtrain.engine.together import on_main
from rmtrain.errors import Stopped


class Files:
    """An input and an output, of which only the main process has any. All of it is called on all processes.

    Args:
        accelerator: the processes.
        stop: whether a signal came to them.
        stack: closes the files.
    """

    def __init__(self, accelerator: Accelerator, stop: Stop, stack: ExitStack) -> None:
        self.accelerator, self.stop, self.stack = accelerator, stop, stack
        self.done = Done()
        self._chunks: Iterator[Chunk] = iter(())
        self._sink: Sink | None = None

    def open(self, source: str, target: str, settings: Mapping[str, Any], fresh: bool) -> None:
        """Open both; raises what `output` raises."""

        def opening() -> Done:
            stream = self.stack.enter_context(opened(source))
            self._chunks = in_chunks(read_lines(stream, source))
            self._sink = self.stack.enter_context(output(target, settings, fresh))
            return self._sink.done

        self.done = on_main(self.accelerator, opening)

    def turns(self) -> Iterator[list[Chunk]]:
        """The chunks of the input, as many at a time as there are processes: of one there may be too few micro-batches for all."""
        while chunks := on_main(self.accelerator, self._next):
            yield chunks
        self.stop.check(self.accelerator)

    def _next(self) -> list[Chunk]:
        """The next chunks; none where the input ends, or where a signal came while it kept silent."""
        try:
            with self.stop.at_once():
                return list(itertools.islice(self._chunks, self.accelerator.num_processes))
        except Stopped:
            if self.stop.by is None:
                raise
            return []

    def write(self, chunks: Iterator[Sequence[str]]) -> None:
        """Write the lines of chunks, which are made by the main process alone; raises what making and writing them raises."""

        def writing() -> None:
            assert self._sink is not None, "the output is open"
            for lines in chunks:
                self._sink.write(lines)

        on_main(self.accelerator, writing)

    def close(self) -> None:
        """Close both; raises OSError where the last lines do not get to the disk."""
        on_main(self.accelerator, self.stack.close)


@contextmanager
def shared_files(
    accelerator: Accelerator, stop: Stop, source: str, target: str, settings: Mapping[str, Any], fresh: bool
) -> Iterator[Files]:
    """The files, open until the block ends; see `output` for the arguments and errors."""
    with until_closed() if target == STANDARD else nullcontext(), ExitStack() as stack:
        files = Files(accelerator, stop, stack)
        files.open(source, target, settings, fresh)
        yield files
        files.close()
