"""The command line as a checked config: verbs, their flags, config files and overrides.

    invocation = parse(VERB, ["--config=configs/retro.py:172m,smoke", "--workdir=runs/x", "--config.train.steps=100"])

Nothing here imports jax, so mistakes answer at once.
"""

import dataclasses
import difflib
import importlib.util
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from retro_jax.config import RunConfig, SourceConfig, resolve, to_dict


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


def parse(verb: Verb, argv: Sequence[str]) -> Invocation:
    """The command line as a checked config.

    Raises:
      ValueError, absl.flags.Error: an unknown flag or key, with the nearest known one; a missing flag or config file; a value of the
        wrong type; whatever `retro_jax.config.resolve` finds.
    """
    chosen = [argument for argument in argv if argument.lstrip("-").startswith("config=")]
    if not chosen:
        without = flag_values(verb)
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
    values = flag_values(verb)
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


def flag_values(verb: Verb) -> flags.FlagValues:
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
    if not path.is_file():
        raise ValueError(
            f"{workdir} holds no trained model, so --config is needed. Train one first: retro train --help."
        )
    config = ConfigDict(to_dict(resolve(json.loads(path.read_text()))))
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
    config = ConfigDict(to_dict(resolve(json.loads(path.read_text()))))
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
