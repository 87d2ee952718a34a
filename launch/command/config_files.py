"""Loads config files, and the configs stored by finished builds and runs."""

import difflib
import importlib.util
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict, FrozenConfigDict

from retro_jax.config import as_config_dict, convert, open_maps, to_dict
from retro_jax.config.file import read_config_file
from retro_jax.core.paths import local_path
from retro_jax.run_directory.places import model_directory


def load_config(specification: str) -> ConfigDict:
    """Loads `FILE.py:ARGUMENTS` as a ConfigDict, with the defaults of missing keys.

    Raises:
      ValueError: no such file (with the nearest there is), a file that fails (with the line), no `get_config` in it, one
        that takes no argument or returns no config, an unknown key or a value of another type.
    """
    path, module, argument = _load_module(specification)
    return _get_config(path, module.get_config, argument)


def load_sweep(specification: str) -> list[tuple[str, Mapping]] | None:
    """The points that `sweep(argument)` of a config file yields, each a name and overrides; None where it has no `sweep`.

    Raises:
      ValueError: as `load_config`, or a sweep that yields something else.
    """
    path, module, argument = _load_module(specification)
    sweep = getattr(module, "sweep", None)
    if not callable(sweep):
        return None
    words = _words(path, "sweep", sweep, argument, needed=False)
    found = _guarded(path, lambda: list(sweep(*words)))
    for one in found:
        if not (isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Mapping)):
            raise ValueError(
                f"sweep of {path} must yield a name and a dict of overrides, as in yield 'small', {{'model.width': 64}}, but "
                f"yielded {one!r:.100}."
            )
    return found


def _load_module(specification: str) -> tuple[Path, ModuleType, str]:
    """(path, module, argument) of `FILE.py:ARGUMENT`; raises as `load_config`."""
    name, _, argument = specification.partition(".py:")
    path = local_path(name + ".py" if ".py:" in specification else name, "--config")
    if not specification.strip():
        raise ValueError("--config is empty; give a config file, such as configs/quickstart.py:smoke.")
    if path.is_dir():
        raise ValueError(f"--config={specification} is a folder; give a config file in it{_known_files(path)}.")
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
    _guarded(path, lambda: spec.loader.exec_module(module))
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path} defines no get_config(argument), so it is not a config file.")
    return path, module, argument


def _known_files(folder: Path) -> str:
    there = sorted(str(file) for file in folder.glob("*.py"))
    return f": {', '.join(there)}" if there else ""


def _get_config(path: Path, get_config, argument: str) -> ConfigDict:
    """Calls `get_config` and checks its result: every key present, known and of the right type."""
    words = _words(path, "get_config", get_config, argument)
    config = _guarded(path, lambda: get_config(*words))
    if not isinstance(config, ConfigDict | FrozenConfigDict):
        raise ValueError(
            f"get_config of {path} must return an ml_collections.ConfigDict, but returned {type(config).__name__}; start "
            f"from retro_jax.config.default_config() and return it."
        )
    run = _guarded(path, lambda: convert(config))
    config = ConfigDict(config) if isinstance(config, FrozenConfigDict) else config
    _fill(config, to_dict(run))
    return open_maps(config)


def _words(path: Path, name: str, function, argument: str, *, needed: bool = True) -> tuple[str, ...]:
    """What a function of a config file is called with: the argument, or nothing where it takes none.

    Args:
      needed: refuse an argument that the function does not take.
    """
    try:
        inspect.signature(function).bind(argument)
    except TypeError:
        if argument and needed:
            raise ValueError(
                f"{name}() of {path} takes no argument, but --config={path}:{argument} gives it {argument!r}; remove "
                f"':{argument}', or define {name}(argument)."
            ) from None
        return ()
    except ValueError:
        pass  # a builtin without a signature
    return (argument,)


def _fill(config: ConfigDict, values: dict) -> None:
    """Adds missing keys. Existing ones do not change, references to other fields too."""
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            if key not in config:
                config[key] = ConfigDict(value) if isinstance(value, dict) else value
            elif isinstance(value, dict):
                _fill(config[key], value)
            elif isinstance(value, float) and isinstance(config[key], int):
                config[key] = value  # else a fraction could not be set on the command line


def _guarded(path: Path, work):
    """The result of running a part of a config file; what goes wrong there is an error that names the file and line."""
    try:
        return work()
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise ValueError(f"The config file {where} is not valid Python: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f", line {lines[-1]}" if lines else ""
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}{line}: {what}") from error


def config_of_run(workdir: Path) -> ConfigDict:
    """The config that the model in WORKDIR/retro, or in WORKDIR itself, was trained with.

    WORKDIR's own data directory comes first, so that a run that was moved finds its data.

    Raises:
      ValueError: no model was trained there.
    """
    path = model_directory(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir} holds no trained model, so --config is needed. Train one first: retro train --help."
        )
    config = _read_config(path)
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
    return _read_config(paths[0])


def _read_config(path: Path) -> ConfigDict:
    remedy = (
        "Give --config, that of the run or build; the `retro train` or `retro build` that made the file rewrites it."
    )
    return as_config_dict(read_config_file(path, remedy))
