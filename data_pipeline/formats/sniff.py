"""Detects from its first bytes whether a file is text or another kind of file.

An error about a file that is not text names its kind and the command that extracts text. It never suggests
`iconv` for bytes that are not text: that would turn them into letters.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.stages.run import StageError

MARK = "\ufeff"  # a byte-order mark says how a file is encoded and is no part of its text
MARKS = {  # the longer first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
POINTER = b"version https://git-lfs.github.com/spec/v1"
HEAD = 1 << 16  # bytes that are looked at
CONTROLS = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})
FEW_CONTROLS = 16  # a text may hold some ...
CONTROL_SHARE = 0.1  # ... but not every tenth byte
LATIN_SHARE = 0.3  # of bytes beyond ASCII: most letters of European languages are ASCII


@dataclass(frozen=True)
class Kind:
    """A kind of file. `remedy` says how to get text from it; FILE is replaced by its path."""

    name: str
    remedy: str
    magic: tuple[bytes, ...]
    offset: int = 0

    def __str__(self) -> str:
        noun = "" if self.name[0].isupper() or " " in self.name else " file"
        return f"{'an' if self.name.startswith(('A', 'HDF5', 'xz')) else 'a'} {self.name}{noun}"


UNPACK = "Unpack it, and give the folder with its files."
LEAVE = "It holds no text. Remove it from the source."
KINDS = (
    Kind("Git LFS pointer", "The data was not fetched with the repository: run `git lfs pull` there.", (POINTER, b"version https://hawser.github.com/spec/v1")),
    Kind("git-annex pointer", "The data was not fetched with the repository: run `git annex get` there.", (b"/annex/objects/",)),
    Kind("gzip", "Its name should end in .gz: rename it to FILE.gz.", (b"\x1f\x8b",)),
    Kind("zstandard", "Its name should end in .zst: rename it to FILE.zst.", (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60)))),
    Kind("xz", "Its name should end in .xz: rename it to FILE.xz.", (b"\xfd7zXZ\0",)),
    Kind("bzip2", "Its name should end in .bz2: rename it to FILE.bz2.", tuple(b"BZh%d%b" % (n, rest) for n in range(1, 10) for rest in (b"1AY&SY", b"\x17rE8P\x90"))),
    Kind("zip archive", f"{UNPACK} (.docx, .xlsx, .epub and .npz are zip archives too.)", (b"PK\x03\x04", b"PK\x05\x06")),
    Kind("7z archive", UNPACK, (b"7z\xbc\xaf\x27\x1c",)),
    Kind("RAR archive", UNPACK, (b"Rar!\x1a\x07",)),
    Kind("tar archive", UNPACK, (b"ustar",), 257),
    Kind("PDF document", "Extract its text first, for example with `pdftotext FILE`.", (b"%PDF-",)),
    Kind("Microsoft Office document", "Export it as plain text first.", (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",)),
    Kind("AppleDouble file (what macOS keeps beside a file)", LEAVE, (b"\0\x05\x16\x07", b"\0\x05\x16\0")),
    Kind("program (ELF)", LEAVE, (b"\x7fELF",)),
    Kind("PNG image", LEAVE, (b"\x89PNG\r\n\x1a\n",)),
    Kind("JPEG image", LEAVE, (b"\xff\xd8\xff",)),
    Kind("GIF image", LEAVE, (b"GIF87a", b"GIF89a")),
    Kind("SQLite database", "Export its text as JSON lines first.", (b"SQLite format 3\0",)),
    Kind("HDF5 file", "Export its text as JSON lines first.", (b"\x89HDF\r\n\x1a\n",)),
    Kind("NumPy array", "Export its text as JSON lines first.", (b"\x93NUMPY",)),
    Kind("Python pickle", "It can hold code and is never opened here. Export its text as JSON lines first.", (b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95")),
    Kind("Parquet table", "Its name should end in .parquet: rename it.", (b"PAR1",)),
    Kind("Arrow table", "Its name should end in .arrow: rename it.", (b"ARROW1\0\0",)),
)  # fmt: skip


def kind_of(head: bytes) -> Kind | None:
    """The kind that the first bytes of a file prove; None for text and kinds without a magic number."""
    return next((kind for kind in KINDS if head[kind.offset :].startswith(kind.magic)), None)


def check_kind(head: bytes, path: str, expected: str = "") -> None:
    """Raises StageError where the first bytes are those of another kind than `expected` (a name of `KINDS`, "" for text)."""
    kind = kind_of(head)
    if kind is not None and kind.name != expected:
        wanted = (next(kind for kind in KINDS if kind.name == expected)) if expected else "text"
        raise StageError(f"{path} should be {wanted}, but is {kind}. {kind.remedy.replace('FILE', path)}")


def check_text(head: bytes, path: str, convert: "Convert | None" = None) -> None:
    """Raises StageError for bytes that are not text: another kind, UTF-16 without a mark, binary."""
    check_kind(head, path)
    sample = head[:HEAD]
    if mark := _mark(sample):
        raise StageError(f"{path} is not UTF-8: byte 0 is 0x{sample[0]:02x}. {_convert(convert, mark)}")
    if sample and not sample.strip(b"\0"):
        if len(sample) >= FEW_CONTROLS:
            raise StageError(
                f"{path} holds only NUL bytes: it was never fully written (a crash, a full disk). Make or "
                "fetch it again."
            )
        return
    if encoding := encoding_by_nulls(sample):
        raise StageError(
            f"{path} is {encoding.upper()} without a byte-order mark: NUL bytes stand between its letters. "
            f"{_convert(convert, encoding)}"
        )
    count = controls(sample)
    if count >= FEW_CONTROLS and count > CONTROL_SHARE * len(sample):
        raise StageError(
            f"{path} is not text: {count:,} of its first {len(sample):,} bytes are control characters. Take it out of the "
            "source, or export its text as UTF-8."
        )


Convert = Callable[[str], str]  # of an encoding: the command that converts the file from it


def conversion(path: str, decompress: str = "") -> Convert:
    """The command that converts a local file to UTF-8; without a command for an object in a store.

    Args:
      decompress: a program that writes the plain content of a compressed file, for example "gzip -dc".
    """

    def command(encoding: str) -> str:
        if "://" in path:
            return f"Convert it from {encoding} to UTF-8."
        name = shlex.quote(path)
        read = (
            f"{decompress} {name} | iconv -f {encoding} -t utf-8"
            if decompress
            else f"iconv -f {encoding} -t utf-8 {name}"
        )
        return f"Convert it, for example: {read} > converted.txt"

    return command


def _convert(convert: Convert | None, encoding: str) -> str:
    return convert(encoding) if convert else f"Convert it from {encoding} to UTF-8."


def _mark(content: bytes) -> str:
    return next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "")


def controls(content: bytes) -> int:
    """The number of control characters that text does not contain."""
    return len(content) - len(content.translate(None, CONTROLS))


def encoding_by_nulls(content: bytes) -> str:
    """The encoding of UTF-16 or UTF-32 text without a mark, "" for other bytes.

    Its NULs are all on one side of the letters, and that side holds little else: the number of an alphabet.
    """
    size = len(content) // 4 * 4
    if size < 8 or b"\0" not in content:
        return ""
    sides = [content[number:size:4] for number in range(4)]
    nulls = [side.count(0) for side in sides]
    for encoding, first, high in (("utf-32le", 0, (2, 3)), ("utf-32be", 3, (0, 1))):
        if nulls[first] <= 0.02 * len(sides[0]) and all(nulls[side] >= 0.95 * len(sides[0]) for side in high):
            return encoding
    pairs = (("utf-16le", content[1:size:2], content[0:size:2]), ("utf-16be", content[0:size:2], content[1:size:2]))
    for encoding, high, low in pairs:
        some = high.count(0) >= max(4, 0.02 * len(high)) and low.count(0) <= 0.02 * len(high)
        if some and sum(byte < 32 for byte in high) >= 0.7 * len(high):
            return encoding
    return ""


def decode(content: bytes, path: str, offset: int = 0, convert: Convert | None = None) -> str:
    """Decodes UTF-8, without a leading byte-order mark.

    Args:
      offset: where in its file the content begins.
      convert: see `conversion`; None where no command fits (a row of a table, a member of an archive).

    Raises:
      StageError: it is not UTF-8; the message says what it is, if known, and what to do.
    """
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise not_utf8(error, content, path, offset, convert) from None


def not_utf8(
    error: UnicodeDecodeError, content: bytes, path: str, offset: int = 0, convert: Convert | None = None
) -> StageError:
    """The error that `decode` raises about `content`."""
    at, byte = offset + error.start, content[error.start]
    said = f"{path} is not UTF-8: byte {at:,} is 0x{byte:02x}."
    if offset == 0:
        if mark := _mark(content):
            return StageError(f"{said} {_convert(convert, mark)}")
        if kind := kind_of(content):
            return StageError(f"{said} It is {kind}. {kind.remedy.replace('FILE', path)}")
    around = content[max(0, error.start - HEAD // 2) : error.start + HEAD // 2]
    if encoding := encoding_by_nulls(content[:HEAD]):
        return StageError(f"{said} {_convert(convert, encoding)}")
    if error.reason == "unexpected end of data":
        return StageError(f"{said} It ends within a letter, so it is cut off. Fetch or make it again.")
    if controls(around):
        return StageError(
            f"{said} Control characters stand around it, so this is no text in any encoding, or it is damaged. Fetch or "
            "make it again, or take it out of the source."
        )
    replaced = around.decode("utf-8", "replace")
    wrong = replaced.count("\ufffd")
    if sum(letter > "\x7f" for letter in replaced) > 2 * wrong:
        return StageError(
            f"{said} Text around it is UTF-8, so some bytes were damaged, or texts of several encodings were joined. Fetch "
            "or make it again; converting all of it would spoil what is right."
        )
    beyond = sum(byte > 127 for byte in around)
    if beyond > LATIN_SHARE * len(around):
        return StageError(
            f"{said} Find out which encoding it has (`file -i` guesses), convert it with iconv -f ENCODING -t utf-8, and "
            "look at the result before you build."
        )
    return StageError(f"{said} {_convert(convert, 'cp1252' if _windows(around) else 'latin1')}")


def _windows(content: bytes) -> bool:
    """Whether there are bytes which are quotes and dashes in Windows' encoding and controls in Latin-1."""
    return any(128 <= byte < 160 for byte in content)
