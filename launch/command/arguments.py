"""Parses the command line of a verb into a checked config.

    invocation = parse(VERB, ["--config=configs/retro.py:172m,smoke", "--workdir=runs/x", "--config.train.steps=100"])

Nothing here imports jax, so usage errors are reported at once.
"""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipeline.pipeline import data_directory
from launch.command.config_files import config_of_build, config_of_run, load_config
from launch.command.reads import READS, check_reads
from retro_jax.config import RunConfig, SourceConfig, declarations, default_config, resolve, to_dict
from retro_jax.config.local_paths import with_local_paths
from retro_jax.core.paths import local_folder, require_writable
from retro_jax.run_directory.plain_path import require_path

KEPT = "Finished files are kept and none is half-written: the same command continues where it stopped."
NOTHING_KEPT = "Nothing was changed; the same command starts from the beginning."
SWITCHES = {f"config.{one.key}" for one in declarations(RunConfig) if one.kind in (bool, bool | str)}


@dataclass(frozen=True)
class Verb:
    """A command of `retro`."""

    name: str
    summary: str
    example: str  # arguments that work after `retro NAME` at the repository root
    define_flags: Callable[[flags.FlagValues], None] | None = None  # flags besides --config and --workdir
    needs_workdir: bool = True
    needs_config: bool = True
    others: str = ""  # what words that are no flags are ("RUN"); empty: there may be none
    writes: bool = True  # into WORKDIR
    reads_run: bool = False  # --config may be left out: it is that of the run in WORKDIR
    reads_build: bool = False  # --config may be left out: it is that of the build in WORKDIR
    interrupted: str = KEPT  # the message after a signal


@dataclass(frozen=True)
class Invocation:
    """A parsed command line."""

    run: RunConfig
    workdir: Path
    flags: flags.FlagValues
    given: tuple[str, ...] = ()  # keys that the command line itself sets, without "config."
    others: tuple[str, ...] = ()  # words that are no flags

    @property
    def data_directory(self) -> Path:
        return data_directory(self.run, self.workdir)


def parse(verb: Verb, argv: Sequence[str]) -> Invocation:
    """Parses the command line.

    Raises:
      ValueError, absl.flags.Error: an unknown flag or key, with the nearest known one; a key that the verb does not read;
        a missing flag or config file; a value of the wrong type; whatever `retro_jax.config.resolve` finds.
    """
    values = flag_values(verb)
    words = one_word_flags(verb, argv)
    check_repeats(words)
    chosen = [word.partition("=")[2] for word in words if flag_name(word) == "config"]
    keys = [key.split(".") for word in words if (key := override_of(word))]
    if not verb.needs_config and (chosen or keys):
        raise ValueError(
            f"retro {verb.name} reads no config; remove --config. Example: retro {verb.name} {verb.example}"
        )
    config = load_config(chosen[0]) if chosen else _kept_config(verb, words) if verb.needs_config else default_config()
    named = [word.partition("=")[2] for word in words if flag_name(word) == "set"]  # the source may be of --path alone
    for key in keys:
        new = key[:2] == ["data", "sources"] and len(key) == 4 and (key[3] in ("path", "package") or key[2] in named)
        if new and key[2] not in config.data.sources:
            config.data.sources[key[2]] = to_dict(SourceConfig())  # a source that only the command line names
    for key in keys:
        check_key(["config", *key], config)
    given = tuple(dict.fromkeys(".".join(key) for key in keys))
    if (name := _name_in_reads(verb, words)) in READS:
        check_reads(name, given)
    arguments = ["retro", *(word for word in words if flag_name(word) != "config")]
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=arguments
    )
    rest = values(arguments)[1:]
    if rest and not verb.others:
        raise ValueError(
            f"{rest[0]!r} is not a flag; flags look like --name=value. Example: retro {verb.name} {verb.example}"
        )
    if verb.needs_workdir and not values.workdir:
        raise ValueError(f"--workdir is missing. For example: retro {verb.name} {verb.example}")
    if not verb.needs_workdir and values.workdir is not None:
        raise ValueError(f"retro {verb.name} writes no files, so --workdir={values.workdir} means nothing; remove it.")
    run, workdir = with_local_paths(resolve(values.config)), local_folder(values.workdir or ".", "--workdir")
    if verb.needs_workdir and verb.writes:
        require_writable(workdir, "--workdir")
    require_path(workdir, "--workdir")
    require_path(Path(run.data.directory), "config.data.directory")
    return Invocation(run, workdir, values, given, tuple(rest))


def _kept_config(verb: Verb, words: Sequence[str]) -> ConfigDict:
    """The config of the run or build in WORKDIR, for a verb that does not need --config."""
    values = _without_overrides(verb, words)
    if not (verb.reads_run or verb.reads_build) or not values.workdir:
        raise ValueError(f"--config is missing. For example: retro {verb.name} {verb.example}")
    return (config_of_build if verb.reads_build else config_of_run)(local_folder(values.workdir, "--workdir"))


def _without_overrides(verb: Verb, words: Sequence[str]) -> flags.FlagValues:
    """The verb's own flags; unknown ones are refused."""
    values = flag_values(verb)
    flags.DEFINE_string("config", None, "", flag_values=values)
    values(["retro", *(word for word in words if not override_of(word))])
    return values


def _name_in_reads(verb: Verb, words: Sequence[str]) -> str:
    """The verb's entry in READS: the one with a flag ("database verify --repair") where that flag is given."""
    with_flags = [name for name in READS if name.startswith(f"{verb.name} --")]
    if not with_flags:
        return verb.name
    values = _without_overrides(verb, words)
    return next((name for name in with_flags if values[name.partition(" --")[2]].value), verb.name)


def flag_values(verb: Verb) -> flags.FlagValues:
    values = flags.FlagValues()  # of this call alone: absl's global flags keep what an earlier call set
    flags.DEFINE_string("workdir", None, "where results go", flag_values=values)
    if verb.define_flags:
        verb.define_flags(values)
    return values


def flag_name(word: str) -> str | None:
    """The name in "--name" or "--name=value"; None for other words."""
    return word.lstrip("-").partition("=")[0] if word.startswith("-") else None


def override_of(word: str) -> str | None:
    """The config key that a flag sets ("train.steps"); None for other words."""
    name = flag_name(word) or ""
    return next((name.removeprefix(start) for start in ("config.", "noconfig.") if name.startswith(start)), None)


def one_word_flags(verb: Verb, argv: Sequence[str]) -> list[str]:
    """Joins flags of two words: `--config FILE` becomes `--config=FILE`.

    Raises:
      ValueError: a flag without its value.
    """
    values, found, left = flag_values(verb), [], list(argv)
    while left:
        word = left.pop(0)
        name = flag_name(word)
        if word == "--":
            return [*found, word, *left]
        if not name:
            found.append(word)
        elif "=" in word:
            found.append(f"--{word.lstrip('-')}")
        elif name in ("config", "workdir") or (name.startswith("config.") and name not in SWITCHES):
            if not left or left[0].startswith("--"):
                raise ValueError(f"--{name} needs a value: --{name}=... Example: retro {verb.name} {verb.example}")
            found.append(f"--{name}={left.pop(0)}")
        elif name in values and not values[name].boolean and left:
            found.append(f"--{name}={left.pop(0)}")
        else:
            found.append(f"--{name}")
    return found


def check_repeats(words: Sequence[str]) -> None:
    """Raises ValueError where --config or --workdir is given twice. Of a key given twice the last value counts, as usual."""
    seen: dict[str | None, str] = {}
    for word in words:
        name = flag_name(word)
        if name in ("config", "workdir") and seen.setdefault(name, word) != word:
            raise ValueError(f"--{name} is given twice, {seen[name]} and {word}; give it once.")


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
