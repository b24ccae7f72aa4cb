"""stdout and stderr: closed by the shell, in an encoding that lacks characters, with no reader.

`… | head` closes a pipe while the program still prints. Where nothing would be lost, that ends the
program (`BrokenPipeError`); within `on_broken_pipe` it does not: what is printed is discarded from
then on, and the caller decides what to do. There, neither does a terminal that is gone or a full
disk below `> log.txt`.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

_callbacks: list[Callable[[], None]] = []


def use_utf8() -> None:
    """Start the process again in Python's UTF-8 mode where all text would be ASCII.

    Python does so by itself in the C locale, unless PYTHONUTF8=0 is set: then file names and
    prompts with other characters would not even arrive as text.
    """
    ascii_only = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if ascii_only and sys.executable and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare_streams() -> None:
    """Make printing safe; called before anything keeps a reference to a stream."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by the shell: give what is printed somewhere to go
            discard(number)
            setattr(sys, name, os.fdopen(number, "w"))
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding lacks must not end a run.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
        _guard(stream)


def discard(number: int) -> None:
    """Let a file descriptor, such as 2 for stderr, lead to the null device."""
    handle = os.open(os.devnull, os.O_WRONLY)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)


@contextmanager
def on_broken_pipe(callback: Callable[[], None]) -> Generator[None]:
    """While the block runs, call `callback` when the reader of stdout or stderr has gone, instead
    of raising BrokenPipeError. What is printed later is discarded.
    """
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)


def _guard(stream: Any) -> None:
    """Replace the methods of this one object: progress bars and log handlers keep references to it,
    so another stream in its place would not be used by them."""
    if getattr(stream, "guarded", False):
        return

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except BrokenPipeError:
                if not _callbacks:
                    raise
                discard(stream.fileno())
                _callbacks[-1]()
            except OSError:  # a terminal that was closed, or a log on a full disk
                if not _callbacks:
                    raise
                discard(stream.fileno())
            return len(arguments[0]) if arguments else None

        return call

    stream.write, stream.flush = guarded(stream.write), guarded(stream.flush)
    stream.guarded = True
