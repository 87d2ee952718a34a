"""Safe standard output and standard error: text that cannot be printed is lost and the work continues.

A log's reader can go away, the disk under a log can fill up, a terminal can hang up, and a process can start with its
streams closed. `protect` makes both streams safe. `deliver` prints a command's result and raises an error if it is lost.
"""

import contextlib
import errno
import os
import select
import sys

PATIENCE_MS = 5000  # to wait for a reader that has stopped reading (a paused pager, Ctrl-S)
PIECE = 1024  # characters: at most 4,096 bytes, which a ready pipe takes in one write
ERASE = "\r\x1b[J"  # the lines of the bar and of the bars below it
READER_GONE, DISK_FULL, MISTAKE = 141, 3, 2  # exit codes; 141 is a shell's for a program that SIGPIPE ended


class Stream:
    """A text stream whose `write` and `flush` never raise; `fault` is why text was lost, or None.

    Other attributes are those of `stream`. A message that is written while a progress bar is on the terminal's line removes
    the bar first; the bar's next update draws it again below.
    """

    drawn = None  # the Stream whose last line holds a bar

    def __init__(self, stream):
        self.fault: Exception | None = None
        self._closed = stream is None or getattr(stream, "closed", False)
        self._stream = open(os.devnull, "w", encoding="utf-8") if self._closed else stream
        self._patience = PATIENCE_MS
        with contextlib.suppress(Exception):
            if self._stream.errors == "strict":  # characters outside the encoding are printed as \uXXXX
                self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if Stream.drawn is not None and text:
            below, Stream.drawn = Stream.drawn, None
            below._put(ERASE, 0)
        self._patience = PATIENCE_MS if self._put(text, self._patience) else 0  # not again for every line
        return len(text)

    def draw(self, text: str) -> None:
        """Writes a progress bar if the reader is ready; never waits."""
        if text:
            self._put(text, 0)
            Stream.drawn = None if text.endswith("\n") else self

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass  # every write was

    def _put(self, text: str, patience: int) -> bool:
        """Whether the text was written, or lost for a reason other than a waiting reader."""
        try:
            for start in range(0, len(text), PIECE):
                if not self._ready(patience):
                    raise BlockingIOError(errno.EAGAIN, "its reader has stopped reading")
                self._stream.write(text[start : start + PIECE])
                self._stream.flush()
            if self._closed and text:
                raise OSError(errno.EBADF, "it is closed")
        except Exception as error:
            self.fault = self.fault or error
            return not isinstance(error, BlockingIOError)
        return True

    def _ready(self, patience: int) -> bool:
        try:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLOUT)
        except (OSError, ValueError, AttributeError):
            return True  # not a file: a notebook's, a test's
        return bool(poll.poll(patience))


def protect() -> None:
    """Makes this process's streams safe; call it before anything opens a file. Calling it again changes nothing.

    Where descriptor 0, 1 or 2 is closed, the null device takes its place: otherwise the next file opened would get the
    number, and a library's messages would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Stream):
            setattr(sys, name, Stream(getattr(sys, name)))


def fresh_line() -> None:
    """Makes the next message clear the terminal's line of foreign text: the echo of Ctrl-C, a child's bar."""
    if isinstance(sys.stderr, Stream) and sys.stderr.isatty():
        Stream.drawn = sys.stderr


class OutputLost(Exception):
    """A command's result could not be written to standard output.

    `code` is the exit code; the message is empty if the reader closed the pipe, as `head` does.
    """

    def __init__(self, fault: Exception):
        number = getattr(fault, "errno", None)
        gone = number == errno.EPIPE
        self.code = READER_GONE if gone else DISK_FULL if number in (errno.ENOSPC, errno.EDQUOT) else MISTAKE
        reason = getattr(fault, "strerror", None) or fault
        super().__init__("" if gone else f"standard output could not be written: {reason}.")

    def tell(self, name: str, more: str = "") -> int:
        """Prints the message to standard error and returns the exit code."""
        if str(self):
            print(f"{name}: {self}{more}", file=sys.stderr)
        return self.code


def deliver(text: str) -> None:
    """Prints a command's result.

    Raises:
      OutputLost: not all of it could be written.
    """
    protect()
    print(text)
    if lost := lost_output():
        raise lost


def lost_output() -> OutputLost | None:
    """The error for output lost so far, which the caller may raise or log; None if none was lost."""
    fault = getattr(sys.stdout, "fault", None)
    return None if fault is None else OutputLost(fault)


class side_channel:
    """`with side_channel("tensorboard"): ...`: an error inside is logged once, and training continues.

    For optional output: boards, traces, heartbeats, the clock. May be entered repeatedly; `failed`
    is about the last time.
    """

    def __init__(self, name: str):
        self.name, self.failed, self._told = name, False, False

    def __enter__(self) -> "side_channel":
        self.failed = False
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        self.failed = isinstance(error, Exception)
        if self.failed and not self._told:
            self._told = True
            print(f"{self.name}: {type(error).__name__}: {error}; training continues.", file=sys.stderr)
        return self.failed
