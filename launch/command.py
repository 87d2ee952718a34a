"""What the verbs share: flags, configs, help, and how an error reaches the user.

    VERB = Verb("train", "trains a model ...", "--config=configs/retro.py:172m,smoke --workdir=runs/172m-smoke")

    def main(argv=None):
        return run_verb(VERB, execute, argv)  # execute(Invocation) does the work

Exit codes: 0 done, 2 a mistake that the message explains, 3 the disk is full, 75 stopped from outside (SIGTERM, another
host lost; saved, run the same command again), 130 interrupted. RETRO_TRACEBACK=1 shows where an error was raised. Nothing
here imports jax, so help and mistakes answer at once.
"""

import dataclasses
import difflib
import errno
import importlib.util
import os
import shutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch.explain import is_foreign, words
from retro_jax.config import RunConfig, SourceConfig, resolve, to_dict
from retro_jax.config_file import read_config_file
from retro_jax.preemption import EXIT_CODE, LostHost, Preempted

OK, MISTAKE, DISK_FULL, INTERRUPTED = 0, 2, 3, 130
RUN_REMEDY = "Give --config, that of the run; it is written anew by `retro train` with that config and"
CONFIG_HELP = """\
  --config=FILE.py[:ARGUMENTS]   what to run, e.g. configs/retro.py:172m,smoke
  --config.SECTION.KEY=VALUE     changes one value, e.g. --config.train.steps=100 (keys: retro_jax/config.py)
  --workdir=DIR                  where results go; running again continues there"""


@dataclass(frozen=True)
class Verb:
    """A command of `retro`."""

    name: str
    summary: str
    example: str  # arguments that work when pasted after `retro NAME` at the repository root
    define_flags: Callable[[flags.FlagValues], None] | None = None  # flags besides --config and --workdir
    needs_workdir: bool = True
    reads_run: bool = False  # --config may be left out: it is that of the run in WORKDIR
    reads_build: bool = False  # --config may be left out: it is that of the build in WORKDIR


@dataclass(frozen=True)
class Invocation:
    """A parsed command line."""

    run: RunConfig
    workdir: Path
    flags: flags.FlagValues

    @property
    def data_directory(self) -> Path:
        return data_directory(self.run, self.workdir)


def data_directory(run: RunConfig, workdir: Path) -> Path:
    """Where the stages of `retro build` are: config.data.directory, or WORKDIR/data where that is empty."""
    return Path(run.data.directory or Path(workdir) / "data")


def run_verb(verb: Verb, execute: Callable[[Invocation], None], argv: Sequence[str] | None = None) -> int:
    """Parses, executes and returns the exit code; a user's mistake is one message on standard error.

    Args:
      argv: what follows the verb; None takes it from the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print(help_text(verb))
        return OK
    try:
        invocation = parse(verb, argv)
        execute(invocation)
    except KeyboardInterrupt:
        print(f"\nretro {verb.name}: interrupted. The same command continues where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except (Preempted, LostHost) as stopped:
        print(f"\nretro {verb.name}: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except Exception as error:
        code, message = explain(error, verb)
        if os.environ.get("RETRO_TRACEBACK", "0") not in ("", "0") or message is None:
            raise
        print(f"retro {verb.name}: {message}", file=sys.stderr)
        return code
    return OK


def explain(error: BaseException, verb: Verb) -> tuple[int, str | None]:
    """Exit code and message of an error; no message for what only a mistake of ours can cause."""
    chain = list(_causes(error))
    for cause in chain:
        if _disk_full(cause):
            return DISK_FULL, (
                f"the disk is full: {_room(cause) or str(error).splitlines()[0]} What was finished is whole and nothing "
                f"was removed: make room, then run the same command again; it continues where it stopped."
            )
    if isinstance(error, flags.Error) or (isinstance(error, ValueError) and not is_foreign(error)):
        return MISTAKE, str(error)
    message = words(error)
    return (1, None) if message is None else (MISTAKE, message)


def _disk_full(error: BaseException) -> bool:
    """By error number; by message where a library (tensorstore, NumPy's short writes) gives no more."""
    short_write = isinstance(error, OSError) and " requested and " in str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    return full or short_write


def _room(error: BaseException) -> str:
    """What is left where the error says it was; empty where it does not say."""
    where = getattr(error, "filename", None)
    return f"{shutil.disk_usage(_existing(Path(where))).free / 2**20:,.0f} MiB are left at {where}." if where else ""


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def help_text(verb: Verb) -> str:
    lines = [f"retro {verb.name}: {verb.summary}", "", "Example:", f"  retro {verb.name} {verb.example}", "", "Flags:"]
    lines.append(CONFIG_HELP if verb.needs_workdir else CONFIG_HELP.rsplit("\n", 1)[0])
    if verb.reads_run:
        lines.append(
            "  --config may be left out: it then is that of the model trained in WORKDIR/retro or in WORKDIR itself."
        )
    if verb.reads_build:
        lines.append("  --config may be left out: it then is that of the build in WORKDIR/data.")
    values = _flag_values(verb)
    for name in sorted(set(values) - {"workdir"}):
        flag = values[name]
        default = "" if flag.default is None else f" (default {flag.default!r})"
        lines.append(f"  --{name:<29}{flag.help}{default}")
    return "\n".join(lines)


def parse(verb: Verb, argv: Sequence[str]) -> Invocation:
    """The command line as a checked config.

    Raises:
      ValueError, absl.flags.Error: an unknown flag or key, with the nearest known one; a missing flag or config file; a value of the
        wrong type; whatever `retro_jax.config.resolve` finds.
    """
    chosen = [argument for argument in argv if argument.lstrip("-").startswith("config=")]
    if not chosen:
        without = _flag_values(verb)
        flags.DEFINE_string("config", None, "", flag_values=without)
        without(
            ["retro", *(argument for argument in argv if not argument.lstrip("-").startswith(("config.", "noconfig.")))]
        )
        if not (verb.reads_run or verb.reads_build) or not without.workdir:
            raise ValueError(f"--config is missing. For example: retro {verb.name} {verb.example}")
    overrides = [argument for argument in argv if argument.lstrip("-").startswith(("config.", "noconfig."))]
    found = config_of_build if verb.reads_build else config_of_run
    config = load_config(chosen[-1].split("=", 1)[1]) if chosen else found(Path(without.workdir))
    keys = [argument.split("=", 1)[0].lstrip("-").removeprefix("no").split(".") for argument in overrides]
    for key in keys:
        new = key[:3] == ["config", "data", "sources"] and len(key) == 5 and key[4] in ("path", "package")
        if new and key[3] not in config.data.sources:
            config.data.sources[key[3]] = to_dict(SourceConfig())  # a source of the command line alone
    for key in keys:
        check_key(key, config)
    values = _flag_values(verb)
    arguments = ["retro", *(argument for argument in argv if argument not in chosen)]
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=arguments
    )
    rest = values(arguments)[1:]
    if rest:
        raise ValueError(
            f"{rest[0]!r} is not a flag; flags look like --name=value. Example: retro {verb.name} {verb.example}"
        )
    if verb.needs_workdir and not values.workdir:
        raise ValueError(f"--workdir is missing. For example: retro {verb.name} {verb.example}")
    return Invocation(resolve(values.config), Path(values.workdir or "."), values)


def _flag_values(verb: Verb) -> flags.FlagValues:
    values = flags.FlagValues()  # of this call alone: absl's global flags keep what an earlier call set
    flags.DEFINE_string("workdir", None, "where results go", flag_values=values)
    if verb.define_flags:
        verb.define_flags(values)
    return values


def load_config(specification: str) -> ConfigDict:
    """The ConfigDict that FILE.py of `FILE.py:ARGUMENTS` makes of the arguments.

    Raises:
      ValueError: no such file (with the nearest there is), or no `get_config` in it.
    """
    name, _, argument = specification.partition(".py:")
    path = Path(name + ".py" if ".py:" in specification else name)
    if not path.is_file():
        there = sorted(str(file) for file in path.parent.glob("*.py"))
        near = difflib.get_close_matches(str(path), there, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"there is: {', '.join(there) or 'no config file'} in {path.parent}."
        )
        raise ValueError(f"There is no config file {path} (from {Path.cwd()}); {hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python config file; take one such as configs/quickstart.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} defines no get_config(argument), so it is not a config file.")
    return module.get_config(argument)


def config_of_run(workdir: Path) -> ConfigDict:
    """The config that the model in WORKDIR/retro, or in WORKDIR itself, was trained with.

    Its data directory is left to WORKDIR where WORKDIR has one: a run that was moved finds its own.

    Raises:
      ValueError: no model was trained there.
    """
    path = model_directory(workdir) / "config.json"
    if not path.parent.exists():
        raise ValueError(
            f"{workdir} holds no trained model, so --config is needed. Train one first: retro train --help."
        )
    config = ConfigDict(to_dict(read_config_file(path, f"{RUN_REMEDY} --workdir={path.parent}.")))
    if (Path(workdir) / "data").is_dir():
        config.data.directory = ""
    return config


def config_of_build(workdir: Path) -> ConfigDict:
    """The config that the database in WORKDIR/data was built with; other sources may be added to it.

    Raises:
      ValueError: no build was finished there.
    """
    data = Path(workdir) / "data"
    whole = data / "config.json"
    paths = [whole] if whole.is_file() else sorted(data.glob("subset-*/config.json"))
    if len(paths) != 1:
        found = f"{len(paths)} shares of a database" if paths else "no finished build with a config.json"
        raise ValueError(f"{workdir} holds {found}, so --config is needed: that of the build.")
    path = paths[0]
    remedy = "Give --config of the build, or run `retro build` with it once more: it writes the file anew."
    config = ConfigDict(to_dict(read_config_file(path, remedy)))
    for section in (config.data.sources, config.train.subset_weights):
        section.unlock()
    return config


def model_directory(workdir: Path) -> Path:
    """Where the RETRO model of a work directory is: WORKDIR/retro, or WORKDIR where that alone holds a run."""
    inside = Path(workdir) / "retro"
    return Path(workdir) if not inside.exists() and (Path(workdir) / "checkpoints").exists() else inside


def check_key(parts: Sequence[str], config: Mapping) -> None:
    """Raises ValueError where `config.a.b` is not a key, with the nearest known one."""
    kind, here = RunConfig, config
    for depth, part in enumerate(parts[1:], start=1):
        where = ".".join(parts[:depth])
        if dataclasses.is_dataclass(kind):
            known = typing.get_type_hints(kind)
        elif typing.get_origin(kind) is None or not issubclass(typing.get_origin(kind), Mapping):
            raise ValueError(f"{'.'.join(parts)} is not a config key: {where} is a single value; set {where} itself.")
        else:
            item = typing.get_args(kind)[1]
            known = dict.fromkeys(here, item) if dataclasses.is_dataclass(item) else {part: item}
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"known keys: {', '.join(sorted(known)) or 'none'}."
            raise ValueError(f"{where}.{part} is not a known config key; {hint}")
        kind, here = known[part], here.get(part, {}) if isinstance(here, Mapping | ConfigDict) else {}
