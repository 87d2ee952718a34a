"""Paths as users write them: `~`, `file://` and URLs are expanded or refused, never taken as folder names."""

from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

from launch import build
from launch.build import VERB
from launch.command import config_files, run
from launch.database import read_ids
from retro_jax.config import DataConfig, EvaluateConfig, RunConfig, TrainConfig
from retro_jax.config.local_paths import LOCAL_KEYS, with_local_paths
from retro_jax.core.paths import file_name, local_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize(
    "value",
    ["a", "./~/a", "a/~", "lr=1e-3,layers=[2,4]", "C:x", "gs:/a", "a b\n", "$HOME/a", "a://b", "file:a", "é::b"],
)
def test_a_plain_path_stays_as_it_is(value):
    """Every other name is a path; a scheme has two letters or more."""
    assert local_path(value, "w") == Path(value)


def test_home_and_file_urls_are_expanded(home):
    assert local_path("~", "w") == home and local_path("~/a b", "w") == home / "a b"
    assert local_path("file:///x/a%20b", "w") == local_path("file://localhost/x/a b", "w") == Path("/x/a b")


@pytest.mark.parametrize(
    "value, message",
    [
        ("gs://bucket/run", r"w='gs://bucket/run' is a URL, but this must be a path on this machine. Mount the store"),
        ("s3://bucket", "is a URL"),
        ("https://a.example/b", "is a URL"),
        ("file://server/x", r"names the machine 'server'; a local path has three slashes: file:///server/x"),
        ("~no-such-user/x", "~no-such-user is not a user of this machine. Give the full path, or ./~no-such-user/x"),
        ("a\0b", "holds a NUL character"),
    ],
)
def test_what_is_no_local_path_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        local_path(value, "w")


def test_folders_that_an_earlier_version_made_are_found_again(home):
    """Guards against restarting a run that an earlier version put into folders named "~" or "gs:"."""
    Path("~/run").mkdir(parents=True)
    Path("gs:/bucket/run").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"means {home}/run, but .* '~/run' is in the current folder as well"):
        local_path("~/run", "w")
    with pytest.raises(ValueError, match=r"the local folder gs:/bucket/run is ./gs:/bucket/run"):
        local_path("gs://bucket/run", "w")
    assert local_path("./gs:/bucket/run", "w").is_dir()


def test_every_key_that_is_a_path_is_covered(home):
    """Guards against a path key missing from LOCAL_KEYS, which would not be expanded."""
    run = RunConfig(
        data=DataConfig(directory="~/d", tokenizer="~/t", encoder="file:///e", database="~/b"),
        train=TrainConfig(initialize_from="~/i"),
        evaluate=EvaluateConfig(retro="~/r", baseline="file:///b", tried_databases=("~/o", "/p")),
    )
    plain = with_local_paths(run)
    values = {key: getattr(getattr(plain, section), key) for section, keys in LOCAL_KEYS.items() for key in keys}
    expected = {key: str(home / key[0]) for key in ("directory", "tokenizer", "initialize_from", "retro")}
    expected["database"] = str(home / "b")
    assert values == {**expected, "encoder": "/e", "baseline": "/b", "tried_databases": (str(home / "o"), "/p")}
    assert with_local_paths(plain) is plain
    for section, keys in LOCAL_KEYS.items():
        for key in keys:
            url = ("s3://b/x",) if isinstance(values[key], tuple) else "s3://b/x"
            wrong = replace(RunConfig(), **{section: replace(getattr(RunConfig(), section), **{key: url})})
            with pytest.raises(ValueError, match=rf"config\.{section}\.{key}='s3://b/x' is a URL"):
                with_local_paths(wrong)


def test_a_verb_expands_or_refuses_before_anything_is_made(home, capsys):
    root = ROOT
    config = f"--config={root}/configs/own_text.py:text"
    found = run.parse(VERB, [config, "--workdir=~/run", "--config.data.encoder=~/bert"])
    assert found.workdir == home / "run" and found.run.data.encoder == str(home / "bert")
    for arguments in (["--workdir=gs://bucket/run"], ["--workdir=runs/x", "--config.data.directory=gs://bucket/data"]):
        assert build.main([config, *arguments]) == 2
        assert "is a URL, but this must be a path on this machine" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--config='gs://b/c.py' is a URL"):
        config_files.load_config("gs://b/c.py:x")
    with pytest.raises(ValueError, match="FILE='s3://ids' is a URL"):
        read_ids("@s3://ids")
    assert list(Path.cwd().iterdir()) == [], "no folder named gs: or ~ was made"


def test_a_workdir_that_is_no_folder_is_named(capsys):
    config = f"--config={ROOT}/configs/own_text.py:text"
    Path("file").write_text("x")
    Path("link").symlink_to("nowhere")
    for workdir, message in (
        ("file", "--workdir='file' must be a folder, but file is a file"),
        ("file/run", "but file is a file"),
        ("link/run", "but link is a link to nothing"),
    ):
        assert build.main([config, f"--workdir={workdir}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Pile-CC", "Wikipedia (en)", "math.AG", "x" * 100])
def test_a_plain_name_is_the_name_of_its_file(name):
    assert file_name(name) == name


def test_other_names_become_names_of_files_of_their_own():
    names = ["a/b", "a-b", "a\\b", "..", "../../x", ".hidden", "", "a\n", "x" * 101, "x" * 300, "長", "短", "\ud800"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(made) and made[1] == "a-b"
    assert all(len(name) <= 100 and name.isascii() and not set(name) & set("/\\\n") and name[0] != "." for name in made)
