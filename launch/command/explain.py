"""Explains errors raised by libraries and the system: which file, which value, what to do.

`raise` statements of this repository have their own messages. Errors of libraries and the system are explained here:
errors of files by their number, some by a library's text; any other names the library, the place that called it and the paths
among its variables. An error that only a bug of ours can cause gets no explanation and keeps its traceback.
"""

import dis
import errno
import os
import re
import socket
import sysconfig
from pathlib import Path
from types import TracebackType

PACKAGES = ("retro_jax", "data_pipeline", "launch")
EXTRAS = {
    **dict.fromkeys(("scann", "sentencepiece", "tokenizers", "safetensors", "pypi_simple"), "build"),
    **dict.fromkeys(("zstandard", "pyarrow", "fsspec", "datasketch"), "build"),
    **{"ray": "ray", "wandb": "wandb", "libtpu": "tpu", "s3fs": "store"},
}
# Errors of a bug in the program, which a user cannot correct, so the traceback stays.
OURS = (
    *(TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError, RecursionError),
    *(NotImplementedError, SystemError, StopIteration, BufferError),
)
OF_FILES = {
    errno.EROFS: "{path} is on a file system that is mounted read-only, so nothing can be written there. Mount it for "
    "writing, or give another directory.",
    errno.ENAMETOOLONG: "{path} is a longer name than the file system takes (255 bytes a part as a rule). Give a shorter one.",
    errno.EMFILE: "too many files are open at once ({path}). Raise the limit, `ulimit -n 65536`, and run the same command again.",
    errno.ENFILE: "too many files are open on this machine ({path}). Close other programs and run the same command again.",
    errno.ELOOP: "{path} is a symbolic link that leads back to itself. Correct it with `ln -sfn TARGET LINK`.",
    errno.EISDIR: "{path} is a folder where a file is needed. Move it away, or give another path.",
    errno.EXDEV: "{path} lies on two file systems. Give one directory on one of them.",
    errno.ENOMEM: "memory ran out ({path}). Close other programs, or make batches and shards smaller.",
}
STORAGE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOTCONN)
OF_LIBRARIES = (  # (a library's text, its meaning and remedy)
    (
        r"Unable to initialize backend|not in the list of known backends|Unknown backend",
        "jax cannot start the devices it was asked for (JAX_PLATFORMS={JAX_PLATFORMS}). Leave JAX_PLATFORMS out to take what "
        "there is, set it to cpu, or install jax for the accelerator: pip install 'jax[cuda12]' or 'jax[tpu]'.",
    ),
    (
        r"RESOURCE_EXHAUSTED|[Oo]ut of memory",
        "the device's memory does not hold this. Lower config.train.batch or raise config.train.accumulation, take "
        "config.model.remat=full, or cut the model over more devices; `retro preflight` says what fits.",
    ),
    (
        r"truth value|invalid value .* for flag|jax_enable|Unknown JAX|Unrecognized config option",
        "jax does not take an environment variable as it is set ({JAX}). Correct it or leave it out.",
    ),
)


def words(error: BaseException) -> str | None:
    """The message for an error of a library or the system; None if only a bug of ours can cause it."""
    if isinstance(error, ImportError):
        return _of_package(error)
    if isinstance(error, AssertionError) and _module(error) == "jax._src.xla_bridge":  # a platform without its plugin
        return OF_LIBRARIES[0][1].format_map(_Environment())
    if isinstance(error, OURS):
        return None
    if isinstance(error, socket.gaierror):
        return f"a host name is not known to the network ({error.strerror or error}). Check the address, then run the same command again."
    if isinstance(error, OSError) and error.errno:
        return _of_file(error)
    if isinstance(error, MemoryError):
        return "memory ran out. Close other programs, or make batches and shards smaller (config.data.shard_chunks, config.train.batch)."
    if isinstance(error, UnicodeEncodeError):
        return f"text cannot be written in the encoding {error.encoding}: {error.reason}. Set PYTHONUTF8=1 and run the same command again."
    for pattern, meaning in OF_LIBRARIES:
        if re.search(pattern, str(error)):
            return f"{meaning.format_map(_Environment())} It says: {_first_line(error)}"
    if not is_foreign(error):
        return None
    library, caller, paths = _origin(error.__traceback__)
    at = f" with {' and '.join(paths)}" if paths else ""
    return (
        f"{library} failed{at}: {_first_line(error) or type(error).__name__}. This is its own message "
        f"({type(error).__name__}, called from {caller}); RETRO_TRACEBACK=1 shows the whole way."
    )


def is_foreign(error: BaseException) -> bool:
    """Whether a library or the system raised an error, not a `raise` statement of this repository or of a config file."""
    last = _last(error.__traceback__)
    if last is None:
        return False
    code = last.tb_frame.f_code
    if not _is_library(code.co_filename, last.tb_frame.f_globals.get("__name__", "")):
        return dis.opname[code.co_code[last.tb_lasti]] not in (
            "RAISE_VARARGS",
            "RERAISE",
        )  # a function written in C did
    return True


def _module(error: BaseException) -> str:
    last = _last(error.__traceback__)
    return last.tb_frame.f_globals.get("__name__", "") if last else ""


def _is_library(file: str, module: str) -> bool:
    if module.partition(".")[0] in PACKAGES:
        return False
    roots = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    if file.startswith("<frozen") or re.search(r"[/\\](site|dist)-packages[/\\]", file):
        return True
    return any(file.startswith(f"{root}{os.sep}") for root in roots)


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _origin(traceback: TracebackType | None) -> tuple[str, str, list[str]]:
    """The library, our last place in the call stack, and the paths among its variables."""
    library, caller, paths = "Python", "launch", []
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__", "")
        if _is_library(frame.f_code.co_filename, module):
            library = module.partition(".")[0] or library
        else:
            caller = f"{Path(frame.f_code.co_filename).name}:{traceback.tb_lineno}"
            found = [str(value) for value in frame.f_locals.values() if isinstance(value, Path)]
            paths, library = found[:3] or paths, "Python"
        traceback = traceback.tb_next
    return library, caller, list(dict.fromkeys(paths))


def _of_package(error: ImportError) -> str | None:
    name = (error.name or "").partition(".")[0]
    if name in PACKAGES or not name:
        return None
    extra = EXTRAS.get(name)
    how = (
        f"of the [{extra}] extra: pip install 'retro_jax[{extra}]'"
        if extra
        else f"which is not in order: pip install {name}"
    )
    why = "" if isinstance(error, ModuleNotFoundError) else f" It says: {_first_line(error)}"
    return f"needs the package {error.name}, {how}.{why}"


def _of_file(error: OSError) -> str:
    path = str(error.filename2 or error.filename or " and ".join(_origin(error.__traceback__)[2]) or "a file")
    if error.errno in OF_FILES:
        return OF_FILES[error.errno].format(path=path)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and (file := _file_on_the_way(path)):
        return f"{file} is a file where a folder is needed. Move it away, or give another path."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}: {path}. Check who owns it with `ls -ld`, or give another path."
    if error.errno in STORAGE:
        return (
            f"the storage does not answer ({error.strerror}): {path}. Finished files are complete: correct the storage, then run "
            "the same command again."
        )
    return f"{error.strerror or error}: {path}. Check the path."


def _file_on_the_way(path: str) -> Path | None:
    """The first part of a path that is a file."""
    return next((part for part in (*reversed(Path(path).parents), Path(path)) if part.is_file()), None)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else ""


class _Environment(dict):
    """Values of environment variables by name; "JAX": all of jax's."""

    def __missing__(self, name: str) -> str:
        if name == "JAX":
            return (
                ", ".join(f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("JAX_"))
                or "none is"
            )
        return os.environ.get(name, "unset")
