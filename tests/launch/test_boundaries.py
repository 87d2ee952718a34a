"""Errors of the system and of libraries are explained with file, value and remedy; bugs of ours keep tracebacks."""

import ast
import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from launch.command.run import Verb, run_verb
from retro_jax.core.files import DamagedFile, load_array, read_json, write_json
from retro_jax.parallel.hosts import HostsError, find_hosts

CONFIG = f"--config={ROOT}/configs/quickstart.py:smoke"
VERB = Verb("try", "tries things", CONFIG)


def attempt(capsys, execute, workdir="x", *more) -> tuple[int, str]:
    code = run_verb(VERB, execute, [CONFIG, f"--workdir={workdir}", *more])
    return code, capsys.readouterr().err


def raising(error):
    def execute(invocation):
        raise error

    return execute


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "mounted read-only"),
        (errno.ENAMETOOLONG, "longer name than the file system takes"),
        (errno.EMFILE, "ulimit -n 65536"),
        (errno.EACCES, "Check who owns it"),
        (errno.EISDIR, "is a folder where a file is needed"),
        (errno.EIO, "the storage does not answer"),
        (errno.ELOOP, "leads back to itself"),
        (errno.EINVAL, "Check the path"),
    ],
)
def test_errors_of_files_name_the_file_and_the_remedy(capsys, number, words):
    code, err = attempt(capsys, raising(OSError(number, os.strerror(number), "some/place")))
    assert code == 2 and words in err and "some/place" in err and "Traceback" not in err


def test_a_file_where_a_folder_is_needed_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "below" / "deeper"):
        code, err = attempt(capsys, lambda call, target=target: target.mkdir(parents=True, exist_ok=True))
        assert code == 2 and f"{tmp_path / 'file'} is a file where a folder is needed" in err


def test_a_library_s_own_error_names_the_library_and_the_path_at_hand(capsys, tmp_path):
    """Guards against a bare "Expecting value: line 1 column 1 (char 0)"."""
    path = tmp_path / "facts.json"
    path.write_text("")

    def by_a_library(invocation):
        path = tmp_path / "facts.json"
        return json.loads(path.read_text())

    def by_a_built_in(invocation):
        place = tmp_path / "facts.json"
        return int("seven") + len(str(place))

    for execute in (by_a_library, by_a_built_in):
        code, err = attempt(capsys, execute)
        assert code == 2 and str(path) in err and "This is its own message" in err and "test_boundaries.py:" in err
    assert "json failed" in attempt(capsys, by_a_library)[1]


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("ours"), AssertionError()])
def test_a_mistake_of_ours_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)):
        attempt(capsys, raising(error))


def test_packages_names_and_devices(capsys):
    for name, words in (("ray", "'retro_jax[ray]'"), ("pyarrow", "'retro_jax[build]'"), ("orbax", "pip install orbax")):
        code, err = attempt(capsys, raising(ModuleNotFoundError("no", name=name)))
        assert code == 2 and f"needs the package {name}" in err and words in err
    with pytest.raises(ModuleNotFoundError):
        attempt(capsys, raising(ModuleNotFoundError("no", name="retro_jax.nothing")))
    assert "host name is not known" in attempt(capsys, raising(socket.gaierror(-2, "Name or service not known")))[1]
    code, err = attempt(capsys, raising(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")))
    assert code == 2 and "config.train.batch" in err and "allocating 9 bytes" in err


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [("JAX_PLATFORMS", "cuda", "Leave JAX_PLATFORMS out"), ("JAX_ENABLE_X64", "maybe", "Correct it or leave it out")],
)
def test_devices_that_are_not_there(tmp_path, name, value, remedy):
    """In a process of its own, because jax starts once."""
    program = (
        "import sys; sys.path[:0] = ['tests/launch', 'tests/fixtures']; from test_boundaries import *\n"
        "def execute(call):\n    import jax\n    jax.devices()\n"
        f"sys.exit(run_verb(VERB, execute, [CONFIG, '--workdir={tmp_path}']))"
    )
    environment = {**os.environ, **{name: value}}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"{name}={value}" in done.stderr and remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_a_work_directory_that_cannot_be_is_refused_at_once(capsys, tmp_path):
    def execute(invocation):
        raise AssertionError("it must not come here")

    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for workdir, words in (
        (tmp_path / "file", "must be a folder, but"),
        (tmp_path / "file" / "run", f"{tmp_path / 'file'} is a file"),
        (tmp_path / "link", "is a link to nothing"),
        ("s3://bucket/run", "is a URL, but this must be a path on this machine"),
        ("/proc/1/run", "nothing can be written into"),
    ):
        if str(workdir).startswith("/proc") and os.access("/proc/1", os.W_OK):
            continue  # root may write anywhere but on a read-only mount
        code, err = attempt(capsys, execute, workdir)
        assert code == 2 and words in err, (workdir, err)
    code, err = attempt(capsys, execute, tmp_path, "--config.data.directory=gs://bucket/data")
    assert code == 2 and "config.data.directory='gs://bucket/data'" in err


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (
            {"SLURM_NTASKS": "two", "SLURM_PROCID": "0"},
            "SLURM_NTASKS is a number that the scheduler sets, but is 'two'",
        ),
        ({"TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": ""}, "MEGASCALE_NUM_SLICES is a number"),
        ({"TPU_WORKER_ID": "x", "TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID is a number"),
        ({"TPU_WORKER_ID": "5", "TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID counts from 0, but is 5 of 2"),
        (
            {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2"},
            "MEGASCALE_SLICE_ID counts from 0, but is 2 of 2",
        ),
    ],
)
def test_environment_variables_with_values_that_cannot_be_are_named(environment, named):
    with pytest.raises(HostsError, match=named):
        find_hosts("auto", environment)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0\0\0", "holds only NUL bytes"),
        (b'{"a": 1, "b', "is cut off"),
        (b'{"a": }', "is not JSON .* line 1"),
        (b"[1]", "holds a list instead of a dict"),
        (b'{"b": 1}', "has no 'a'"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        (b"[" * 100_000, "is not JSON that retro_jax wrote .nested too deeply|is cut off"),
        (None, "is missing"),
    ],
)
def test_json_that_is_not_what_was_written_is_named(tmp_path, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"x.json ({words}).* Do this."):
        read_json(path, "Do this.", keys=["a"])


def test_a_sealed_file_tells_every_altered_value(tmp_path):
    path, facts = tmp_path / "x.json", {"a": (1, 2.5), "b": {"c": None}}
    write_json(path, facts, seal=True)
    assert read_json(path, "") == {"a": [1, 2.5], "b": {"c": None}}
    path.write_text(path.read_text().replace("2.5", "2.4"))
    with pytest.raises(DamagedFile, match="x.json was altered"):
        read_json(path, "")


def test_arrays_that_are_not_what_was_written_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(100))
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-9], bytes(len(whole)), b"garbage" + whole):
        path.write_bytes(content)
        for mapped in (False, True):
            with pytest.raises(DamagedFile, match="x.npy is not a complete .npy file .* Do this."):
                load_array(path, "Do this.", mapped=mapped)
    path.unlink()
    with pytest.raises(DamagedFile, match="x.npy is missing"):
        load_array(path, "Do this.")


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def source_files() -> list[Path]:
    return [
        path for folder in ("retro_jax", "data_pipeline", "launch") for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    """Guards against dependence on LANG=C and PYTHONUTF8=0."""
    found = []
    for path in source_files():
        for node, name in calls(path):
            mode = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "r"
            text = name.endswith((".read_text", ".write_text")) or (name == "open" and "b" not in str(mode))
            if text and not any(word.arg == "encoding" for word in node.keywords):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    allowed = ("/proc/self/statm",)
    lines = {
        place: (ROOT / place.split(":")[0]).read_text().splitlines()[int(place.split(":")[1]) - 1] for place in found
    }
    assert [place for place in found if not any(word in lines[place] for word in allowed)] == []


def test_json_and_arrays_of_files_are_read_by_the_functions_that_name_them():
    """json.loads, json.load and np.load name neither file nor remedy."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in source_files()
        for node, name in calls(path)
        if name in ("np.load", "json.load") or (name == "json.loads" and "read_text" in ast.unparse(node))
    ]
    allowed = {"retro_jax/core/files.py", "retro_jax/preflight/compile.py"}  # compilation.py reads a pipe
    assert [place for place in found if place.split(":")[0] not in allowed] == []
