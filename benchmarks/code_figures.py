"""Sizes of files and functions, circles and upward arrows of imports, for each of some commits as a table.

    .venv/bin/python benchmarks/code_figures.py b1682ec HEAD

Counted are the lines of `retro_jax`, `data_pipeline` and `launch` as they stand, docstrings, comments and blank lines
included; a function begins at its first decorator, and methods and functions inside functions count as well. An arrow is
an import of one module by another, in functions too, and goes up against `launch -> data_pipeline -> retro_jax`. A circle
is a set of modules that reach each other.
"""

import argparse
import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("retro_jax", "data_pipeline", "launch")  # each may import those before it


def sources(commit: str) -> dict[str, str]:
    """Python files of the packages: path -> text."""
    archive = subprocess.run(["git", "archive", commit, *ORDER], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {
            member.name: files.extractfile(member).read().decode()
            for member in files
            if member.isfile() and member.name.endswith(".py")
        }


def functions(files: Mapping[str, str]) -> dict[str, int]:
    """Lines of each function: "path:line name" -> count."""
    found = {}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[f"{path}:{first} {node.name}"] = node.end_lineno - first + 1
    return found


def module_name(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(files: Mapping[str, str]) -> set[tuple[str, str]]:
    """(importing module, imported module), wherever in the file the import stands."""
    modules = {module_name(path): text for path, text in files.items()}

    def imported(text: str) -> Iterator[str]:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in modules else node.module

    return {(module, name) for module, text in modules.items() for name in imported(text) if name in modules} - {
        (module, module) for module in modules
    }


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Sets of two or more modules that reach each other."""
    onward: dict[str, set[str]] = {}
    for start, end in edges:
        onward.setdefault(start, set()).add(end)
    reach = {}
    for module in onward:
        seen, waiting = set(), [module]
        while waiting:
            new = onward.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reach[module] = seen
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]}
    return sorted(sorted(circle) for circle in found)


def figures(commit: str) -> dict[str, str]:
    files = sources(commit)
    lengths = {path: len(text.splitlines()) for path, text in files.items()}
    long = functions(files)
    edges = arrows(files)
    upward = [pair for pair in edges if ORDER.index(pair[0].split(".")[0]) < ORDER.index(pair[1].split(".")[0])]
    folders = Counter(str(PurePosixPath(path).parent) for path in files)
    longest, largest, fullest = max(lengths, key=lengths.get), max(long, key=long.get), max(folders, key=folders.get)
    return {
        "files": f"{len(files)}",
        "lines": f"{sum(lengths.values()):,}",
        "median file": f"{median(lengths.values()):g} lines",
        "longest file": f"{lengths[longest]} lines ({longest})",
        "functions": f"{len(long):,}",
        "median function": f"{median(long.values()):g} lines",
        "longest function": f"{long[largest]} lines ({largest})",
        "functions over 80 lines": f"{sum(count > 80 for count in long.values())}",
        "most files in one folder": f"{folders[fullest]} ({fullest})",
        "arrows of imports": f"{len(edges):,}",
        "upward arrows": f"{len(upward)}",
        "circles": f"{len(circles(edges))} (modules in them: {sum(map(len, circles(edges)))})",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", default=["HEAD"])
    commits = parser.parse_args().commits
    columns = [figures(commit) for commit in commits]
    print("| | " + " | ".join(commits) + " |\n|---|" + "---|" * len(commits))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


if __name__ == "__main__":
    main()
