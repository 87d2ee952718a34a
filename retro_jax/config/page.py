"""Writes docs/config.md from the declarations: every setting with its type, range, default and meaning.

python -m retro_jax.config.page docs/config.md
"""

import sys
import typing
from pathlib import Path

from retro_jax.config.run import RunConfig
from retro_jax.config.settings import INT32, SEED_MAX, Declared, declarations

INTRODUCTION = """\
# Configuration

Made by `make config-page` from the declarations in `retro_jax/config/`; a test compares. Every setting is a key of a config
file (`config.train.steps = 100`) and of the command line (`--config.train.steps=100`). A value outside its range is an error
that names the key, the range and this text. Which settings a command reads is in its `--help`.
"""


def config_page() -> str:
    """The page as Markdown, a table a section."""
    sections: dict[str, list[str]] = {}
    for one in declarations(RunConfig):
        if one.setting.range is not None:
            sections.setdefault(one.key.rpartition(".")[0], []).append(_row(one))
    parts = [INTRODUCTION]
    for name, rows in sections.items():
        parts.append(
            "\n".join(
                [f"## {name}", "", "| setting | type | range | default | meaning |", "|---|---|---|---|---|", *rows, ""]
            )
        )
    return "\n".join(parts)


def _row(one: Declared) -> str:
    name = one.key.rpartition(".")[2]
    default = f"`{one.default!r}`" if one.default != "" else "empty"
    kind = getattr(one.kind, "__name__", str(one.kind)) if not typing.get_args(one.kind) else str(one.kind)
    kind = kind.replace("collections.abc.", "").replace("retro_jax.config.data.", "")
    limits = one.setting.range.text
    for number, power in ((INT32, "2^31 - 1"), (SEED_MAX, "2^32 - 1")):
        limits = limits.replace(str(number), power)
    cells = (f"`{name}`", kind, limits, default, one.setting.doc)
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def main(argv: list[str]) -> None:
    Path(argv[1]).write_text(config_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv)
