"""A child process that renders chat templates, which are written by strangers and can take unbounded time and memory.

Nothing interrupts Python while it computes in C, as in `10 ** 10 ** 10`: neither an alarm nor another thread gets a turn. A process can be
killed.
"""

import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, finalize

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import BadRow, Message
from rmtrain.errors import TryAgain

Conversation = Sequence[Message]
Variables = Mapping[str, Any]
"""Values of template variables by name, such as `tools`."""

MAX_BYTES = 2**30
"""Memory that a template can take in addition to what its process inherits."""
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError, RecursionError)
STATM = "/proc/self/statm"
PATIENCE = 10
"""Times the limit that a process may take by the clock."""
SHORTEST_WAIT = 0.05


class TemplateProcess:
    """A fork of this process that renders conversations under the chat template that a tokenizer has now."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _reap()
        self.owner, self.template = os.getpid(), template_of(tokenizer)
        self.pipe, theirs = Pipe()
        # No signal reaches the fork: those of a terminal or scheduler go to all processes of a job, and this one handles them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, whose locks a template does not use
                self.pid = os.fork()
            if self.pid == 0:
                _serve(theirs, tokenizer)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.stop = finalize(self, _kill, self.owner, self.pid)

    def render(self, request: tuple[Any, ...], seconds: float) -> list[str | BadRow | int]:
        """Return the answer to a request, which is the arguments of `_apply`.

        Raises:
            TimeoutError: the template took longer than `seconds`, of a processor.
            TryAgain: something else killed the process.
        """
        try:
            self.pipe.send(request)
            if self._answers(seconds):
                answer: list[str | BadRow | int] = self.pipe.recv()
                return answer
        except (EOFError, OSError) as error:
            self.stop()
            raise TryAgain(
                "the process that renders the chat template was killed (out of memory?); run the command again"
            ) from error
        self.stop()
        raise TimeoutError

    def _answers(self, seconds: float) -> bool:
        """Wait until the process has computed for `seconds`, which takes longer by the clock where it waits for a processor."""
        before, end, left = _computed_seconds(self.pid), time.monotonic() + PATIENCE * seconds, seconds
        while not self.pipe.poll(left):
            after = _computed_seconds(self.pid)
            if before is None or after is None or time.monotonic() > end:
                return False
            left = seconds - (after - before)
            if left <= 0:
                return False
            left = max(left, SHORTEST_WAIT)
        return True


_processes: "WeakKeyDictionary[PreTrainedTokenizerBase, TemplateProcess]" = WeakKeyDictionary()
_lock = threading.Lock()
_killed: list[int] = []


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    variables: Variables,
    add_generation_prompt: bool,
    characters: int,
    seconds: float,
) -> list[str | BadRow | int]:
    """Return the text of each conversation, or `template_refused` where the template fails.

    Args:
        tokenizer: its `chat_template` renders them, in transformers' sandbox.
        variables: template variables.
        add_generation_prompt: add the text that announces a reply.
        characters: the largest length of a text; of a longer one, its length is returned.
        seconds: time for all conversations together.

    Raises:
        TimeoutError, TryAgain: as `TemplateProcess.render`.
    """
    with _lock:
        process = _processes.get(tokenizer)
        if (
            process is None
            or not process.stop.alive
            or (process.owner, process.template) != (os.getpid(), template_of(tokenizer))
        ):
            process = _processes[tokenizer] = TemplateProcess(tokenizer)
        listed = [list(conversation) for conversation in conversations]
        return process.render((listed, variables, add_generation_prompt, characters), seconds)


def template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Return everything of a tokenizer that its texts depend on."""
    return tokenizer.chat_template, tokenizer.special_tokens_map


def _serve(pipe: Connection, tokenizer: PreTrainedTokenizerBase) -> NoReturn:
    """Answer requests until the other end is closed, with no file of the parent open: its locks are not to outlive it."""
    try:
        os.closerange(3, pipe.fileno())
        os.closerange(pipe.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        if os.path.exists(STATM):
            with open(STATM) as file:
                inherited = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (inherited + MAX_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        while True:
            pipe.send(_apply(tokenizer, *pipe.recv()))
    finally:
        os._exit(0)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    variables: Variables,
    add_generation_prompt: bool,
    characters: int,
) -> list[str | BadRow | int]:
    try:
        texts = tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
        )
        return [text if len(text) <= characters else len(text) for text in texts]
    except RENDER_ERRORS as error:
        if len(conversations) > 1:  # one at a time, to find those that fail
            return [
                text
                for conversation in conversations
                for text in _apply(tokenizer, [conversation], variables, add_generation_prompt, characters)
            ]
        if isinstance(error, MemoryError):
            return [BadRow("template_refused", f"the chat template takes more than {MAX_BYTES // 2**20} MB of memory")]
        message = " ".join(str(error).split())[:300]
        return [BadRow("template_refused", f"the chat template failed: {type(error).__name__}: {message}")]


def _computed_seconds(pid: int) -> float | None:
    """Return the seconds of processors that a process has taken; None where there is no /proc, or no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, of proc(5)


def _kill(owner: int, pid: int) -> None:
    if os.getpid() == owner:  # a fork of the owner has no right to it
        with suppress(PermissionError):  # of an owner that has changed its user; the process ends with the pipe
            os.kill(pid, signal.SIGKILL)
        _killed.append(pid)


def _reap() -> None:
    """Collect the processes that were killed. Not where they are killed: a signal that came in a finalizer while it waits would be lost."""
    for pid in list(_killed):
        with suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        _killed.remove(pid)
