"""What every command has in common: what surrounds its process, its exit code, and its last words.

===  ==========================================================================================================
  0  done, whether or not somebody was still there to read the summary
  1  it cannot be done: one sentence on standard error names the cause and the mend
  2  the arguments cannot be understood (argparse's own)
130  interrupted from the keyboard: standard error says how to go on
143  ended by SIGTERM, as schedulers and kill do: the same words
===  ==========================================================================================================
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TextIO

_AGAIN = "give the same command again"
# Where errors of a connection come from that the Hub's client lets through; which library it uses differs by release.
_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


def run_command(
    prog: str, body: Callable[[], int | None], *, go_on: str = _AGAIN, prints_result: Callable[[], bool] = lambda: False
) -> int:
    """Run a command to its end, whatever surrounds its process, and return its exit code.

    Args:
        prog: how the command is called; sentences begin with it.
        body: parses the arguments and does the work; None counts as 0.
        go_on: what to do after an interruption.
        prints_result: asked at the end, whether what was printed is the result itself, so that the command fails if it
            cannot be written.
    """
    from rd_hf.files import error_text
    from rd_hf.network import one_answer

    # What is still there as the process ends goes with it: looking through a million objects that torch and
    # transformers made for cycles among them would take as long as a small job.
    atexit.register(gc.freeze)
    with standard_streams() as out, told_of_the_end(), one_answer():
        try:
            code = body() or 0
        except KeyboardInterrupt as end:
            terminated = isinstance(end, Terminated)
            # Of processes that share a job one speaks.
            if os.environ.get("RANK", "0") == "0":
                how = "terminated" if terminated else "interrupted"
                print(f"{prog}: {how}; {go_on} to go on", file=sys.stderr)
            code = 143 if terminated else 130
        except (ValueError, OSError) as error:
            print(f"{prog}: error: {error_text(error)}", file=sys.stderr)
            code = 1
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _NETWORK:
                raise
            print(f"{prog}: error: the connection to the Hub broke ({error_text(error)}): {go_on}", file=sys.stderr)
            code = 1
        out.flush()
        if out.lost is not None and out.lost.errno != errno.EPIPE:
            print(f"{prog}: standard output cannot be written to ({out.lost.strerror})", file=sys.stderr)
            code = code or int(prints_result())
    return code


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is cleared up after an interruption is cleared up after this."""


@contextmanager
def told_of_the_end() -> Iterator[None]:
    """Raise :class:`Terminated` at SIGTERM, once; where nobody else has a say in it."""
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != owner:
            # Forked from it, as the workers of a pool are, which are ended so.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # A launcher sends on what the scheduler has sent already. (Python complains of one that comes to be ignored.)
        signal.signal(number, lambda *_: None)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # Once it has come, those sent on after it are ignored to the end of the process, so that its exit code stands.
        # (Any handler of Python's own is taken away while the interpreter ends; this one stays.)
        ended = signal.getsignal(signal.SIGTERM) is not end
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ended else signal.SIG_DFL)


class _Stream:
    """A standard stream whose end costs nothing: once it cannot be written to, what is printed goes nowhere.

    What the system said then is ``lost``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._survived():
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        with self._survived():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._survived():
            self._stream.flush()

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            # For what is still buffered, the interpreter's own flush at its end, and libraries in C.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):
                os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def standard_streams() -> Iterator[_Stream]:
    """Standard output and error that take any text, in UTF-8 whatever the locale, and outlive their reader; the former.

    A stream that was closed before the process began is opened on nothing, so that no file gets its number; standard
    input stays None for those who ask for it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for stream in before:
        if stream is not None and hasattr(stream, "reconfigure"):
            # PYTHONIOENCODING is an encoding that the user asked for by name.
            chosen = {} if os.environ.get("PYTHONIOENCODING") else {"encoding": "utf-8"}
            stream.reconfigure(errors="backslashreplace", **chosen)
    # In place of a closed one; left open, for library loggers keep the stream they found when imported.
    nowhere = partial(open, os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    out, err = (_Stream(nowhere() if stream is None else stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
