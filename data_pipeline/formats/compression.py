"""Decompression by the ending of a file's name. A stream that ends early is an error.

The libraries' own readers take a truncated zstandard stream, and junk after a bzip2 or xz stream, as an end.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline.formats.files import BLOCK, SourceFile, open_file
from data_pipeline.formats.sniff import Convert, check_kind, conversion, kind_of
from data_pipeline.stages.run import StageError

PACKED = 1 << 14  # compressed bytes that are decompressed at once
WINDOW = 1 << 31  # the largest of `zstd --long=31`; so much memory is taken where a file asks for it


@dataclass(frozen=True)
class Compression:
    name: str  # as in sniff.KINDS
    decompressor: Callable[[], Any]  # of one frame: decompress(bytes), eof, unused_data
    command: str  # that writes the plain content


def _zstandard():
    import zstandard  # of the [build] extra; not needed to read finished stages

    return zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()


_ZSTD = Compression("zstandard", _zstandard, "zstd --long=31 -dc")
COMPRESSIONS = {
    ".gz": Compression("gzip", lambda: zlib.decompressobj(wbits=31), "gzip -dc"),
    ".zst": _ZSTD,
    ".zstd": _ZSTD,
    ".xz": Compression("xz", lzma.LZMADecompressor, "xz -dc"),
    ".bz2": Compression("bzip2", bz2.BZ2Decompressor, "bzip2 -dc"),
}


def compression_of(name: str) -> Compression | None:
    """By the ending of a file's name, in capitals or not."""
    return next((found for ending, found in COMPRESSIONS.items() if name.lower().endswith(ending)), None)


def convert_command(file: SourceFile) -> Convert:
    """See `sniff.conversion`."""
    found = compression_of(file.name)
    return conversion(file.url, found.command if found else "")


def open_plain(file: SourceFile) -> io.BufferedReader:
    """The file's content, decompressed where its name says that it is compressed.

    Raises:
      StageError: the first bytes are of another kind; while reading: damaged, cut off, or a window too large for memory.
    """
    raw = open_file(file)
    found = compression_of(file.name)
    if found is None:
        return raw
    head = raw.peek(512)
    if not head:
        raise StageError(f"{file.url} is empty, but a {found.name} file is not. Fetch or make it again.")
    check_kind(head, file.url, found.name)
    if kind_of(head) is None:
        raise StageError(
            f"{file.url} is no {found.name} file, as its name says: it begins with {head[:16]!r}. Fetch or make it again; if "
            "it is plain text, take the ending off its name."
        )
    return io.BufferedReader(_Frames(file, raw, found), BLOCK)


class _Frames(io.RawIOBase):
    """Decompresses frame by frame: a file may be several compressed files in sequence, each of which must be complete."""

    def __init__(self, file: SourceFile, stream: io.BufferedReader, compression: Compression):
        super().__init__()
        self._file, self._stream, self._compression = file, stream, compression
        self._frame, self._packed, self._ready, self._frames = None, b"", memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._stream.read(PACKED)
            if not self._frame and self._frames:
                self._packed = self._packed.lstrip(b"\0")  # tapes and xz pad with zeros between streams
            if not self._packed:
                if self._stream.peek(1):
                    continue
                if self._frame is not None:
                    raise self._damaged("it ends within its data, so it is truncated")
                return 0
            self._ready = memoryview(self._decompressed())
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompressed(self) -> bytes:
        if self._frame is None:
            self._frame = self._compression.decompressor()
            self._frames += 1
        packed, self._packed = self._packed, b""
        try:
            plain = self._frame.decompress(packed)
        except MemoryError:
            raise self._too_large() from None
        except Exception as error:  # zlib.error, LZMAError, OSError of bz2, ZstdError
            if isinstance(error, StageError):
                raise
            if "llocation" in str(error) or "memory" in str(error):
                raise self._too_large() from None
            raise self._damaged(str(error)) from None
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return plain

    def _damaged(self, said: str) -> StageError:
        where = f" (behind {self._frames - 1} whole ones)" if self._frames > 1 else ""
        return StageError(
            f"{self._file.url} is truncated or no {self._compression.name} file: {said}{where}. Fetch or make it again."
        )

    def _too_large(self) -> StageError:
        return StageError(
            f"{self._file.url} was compressed with a window that does not fit the memory here (up to {WINDOW >> 20:,} MiB "
            f"for zstd --long=31). Read it on a machine with more memory, or compress it again with a smaller window."
        )

    def close(self) -> None:
        self._stream.close()
        super().close()
