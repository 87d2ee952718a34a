"""The Markdown pages: their links resolve, and the example of the README runs."""

import re
from pathlib import Path

import made_up_encoder
import made_up_text
import pytest
from places import ROOT

from launch import database
from launch.__main__ import VERBS

PAGES = sorted(path for folder in ("", "docs/**/", "benchmarks/") for path in ROOT.glob(f"{folder}*.md"))
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def broken_links(page: Path) -> list[str]:
    """Targets of relative links that do not exist; code blocks do not count."""
    text = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    targets = [target.partition("#")[0] for target in LINK.findall(text) if "://" not in target]
    return [target for target in targets if target and not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    """Guards against dead links after a page was moved or renamed."""
    assert broken_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md) [c](page.md#part) [d](https://example.org)\n\n    [e](f.md)\n`[g](h.md)`\n")
    assert broken_links(page) == ["b.md"]


def test_every_page_is_reached_from_the_readme():
    """Guards against pages that no link leads to."""
    reached, waiting = set(), [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            targets = [target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8"))]
            waiting += [(page.parent / target).resolve() for target in targets if target and "://" not in target]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []


def test_the_guide_to_commands_lists_every_verb():
    """Guards against a new verb, or a new action on a database, of which the guide does not say what it reads and writes."""
    rows = [line for line in (ROOT / "docs/guides/commands.md").read_text().splitlines() if line.startswith("| `")]
    first = " ".join(row.split("|")[1] for row in rows)
    for words in (*(f"`retro {verb}" for verb in VERBS), *database.ACTIONS, "launch.harness"):
        assert words in first, words


def shrink(config) -> None:
    """Sizes that compile in seconds."""
    config.model.update(
        vocabulary=made_up_text.VOCABULARY, sequence_length=32, chunk_length=8, layers=2, width=16, heads=2
    )
    config.model.update(head_dim=8, feed_forward=16, retrieval_layers=(2,), loss_block=0, scan=False, remat="none")
    config.model.update(compute_dtype="float32")
    config.model.encoder.update(width=16, heads=2, head_dim=8, feed_forward=16, layers=1)
    config.train.update(batch=8, steps=3, warmup_steps=1, checkpoint_every=3, retrieval_check_every=0)
    config.data.update(recall_sample=20, validation_fraction=0.2)
    config.sample.update(tokens=12, top_p=1.0)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """The example breaks when a public name or an argument changes; here it runs unchanged, on made-up text and tiny sizes."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert "import retro_jax as rx" in example and len(example.splitlines()) <= 21
    made_up_text.write_folder(tmp_path / "my_text", documents=40)
    encoder = made_up_encoder.write(tmp_path / "encoder")
    monkeypatch.setattr("data_pipeline.packages.catalogue.encoder_directory", lambda: encoder)
    monkeypatch.setattr("retro_jax.presets.sizes.shrink", shrink)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "('own', '" in capsys.readouterr().out
