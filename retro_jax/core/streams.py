"""Standard output and standard error that never end the work: text that cannot be printed is lost, and the work continues.

A log's reader can go away, the disk under a log can fill up, a terminal can hang up, and a process can start with its
streams closed. `protect` makes both streams safe. `deliver` prints what a command was asked for, and says where it is lost.
"""

import contextlib
import errno
import os
import select
import sys

PATIENCE_MS = 5000  # that a reader gets which has stopped reading (a paused pager, Ctrl-S)
PIECE = 1024  # characters: at most 4,096 bytes, which a pipe that is ready takes at once
ERASE = "\r\x1b[J"  # the line of the bar, and those of the bars below it
READER_GONE, DISK_FULL, MISTAKE = 141, 3, 2  # exit codes; 141 is a shell's for a program that SIGPIPE ended


class Stream:
    """A text stream whose `write` and `flush` never raise; `fault` is why text was lost, None where none was.

    Everything else is that of `stream`. A message that is written while a progress bar stands on the terminal's line takes
    the bar away first; the bar's next turn draws it again, below.
    """

    drawn = None  # the Stream on whose last line a bar stands

    def __init__(self, stream):
        self.fault: Exception | None = None
        self._closed = stream is None or getattr(stream, "closed", False)
        self._stream = open(os.devnull, "w", encoding="utf-8") if self._closed else stream
        self._patience = PATIENCE_MS
        with contextlib.suppress(Exception):
            if self._stream.errors == "strict":  # what the encoding does not have is printed as \uXXXX
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
        """Writes a progress bar where the reader takes it now."""
        if text:
            self._put(text, 0)
            Stream.drawn = None if text.endswith("\n") else self

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass  # every write was

    def _put(self, text: str, patience: int) -> bool:
        """Whether the reader has taken the text, or it was lost for another reason than a reader that waits."""
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
    """The next message on a terminal takes away what another wrote on the line: its echo of Ctrl-C, a child's bar."""
    if isinstance(sys.stderr, Stream) and sys.stderr.isatty():
        Stream.drawn = sys.stderr


class OutputLost(Exception):
    """Standard output did not take what a command was asked for.

    `code` is the exit code; the message is empty where the reader went away, as `head` does, which needs no words.
    """

    def __init__(self, fault: Exception):
        number = getattr(fault, "errno", None)
        gone = number == errno.EPIPE
        self.code = READER_GONE if gone else DISK_FULL if number in (errno.ENOSPC, errno.EDQUOT) else MISTAKE
        reason = getattr(fault, "strerror", None) or fault
        super().__init__("" if gone else f"standard output could not be written: {reason}.")

    def tell(self, name: str, more: str = "") -> int:
        """Says on standard error what the reader does not know, and returns the exit code."""
        if str(self):
            print(f"{name}: {self}{more}", file=sys.stderr)
        return self.code


def deliver(text: str) -> None:
    """Prints what a command was asked for.

    Raises:
      OutputLost: standard output did not take all of it.
    """
    protect()
    print(text)
    if lost := lost_output():
        raise lost


def lost_output() -> OutputLost | None:
    """What standard output did not take so far, as an error that the caller may raise or only tell."""
    fault = getattr(sys.stdout, "fault", None)
    return None if fault is None else OutputLost(fault)


class side_channel:
    """`with side_channel("tensorboard"): ...`: an error in there is told once, and training continues.

    For what a run shows and does not need: boards, traces, heartbeats, its clock. May be entered again and again; `failed`
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
