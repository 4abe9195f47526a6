"""Configurations: found by name or path, changed field by field, checked, stored with the run and read back.

A config is an `ml_collections.ConfigDict` with the fields of `train/configs/defaults.py`. Whatever is wrong with one is
a `UsageError` that names the field by its full dotted path and the nearest legal one. Nothing here imports JAX until
`validate`, so that `python -m train --help` and `--list` answer at once.
"""

import ast
import copy
import difflib
import importlib.util
import json
import math
import pathlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dl_core.errors import UsageError, unknown_name
from train.configs import defaults
from train.configuration_checks import validate

__all__ = [
    "apply_overrides",
    "differences",
    "flatten",
    "from_json",
    "list_configs",
    "load_config",
    "to_json",
    "validate",
]

CONFIGS = pathlib.Path(defaults.__file__).parent
OPEN_GROUPS = ("fields", "options")  # groups that take new keys: what receives them checks them
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class ConfigSummary(NamedTuple):
    """What `--list` says of a config: its first line and the labelled lines of its docstring."""

    name: str
    description: str
    command: str
    expected: str
    hardware: str


def list_configs() -> tuple[ConfigSummary, ...]:
    """The configs of train/configs/, read from their docstrings without running them, by name."""
    paths = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "defaults"))
    return tuple(_summary(path) for path in paths)


def _summary(path: pathlib.Path) -> ConfigSummary:
    paragraphs = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
    labelled = dict.fromkeys(("Command", "Expected", "Hardware and time"), "")
    label = None
    for line in paragraphs[1:]:
        head, colon, rest = line.partition(":")
        if colon and head in labelled:
            label, labelled[head] = head, rest.strip()
        elif label and line.startswith(" "):  # continued, indented
            labelled[label] += " " + line.strip()
        else:
            label = None
    return ConfigSummary(path.stem, paragraphs[0], *labelled.values())


def config_path(name_or_path: str) -> pathlib.Path:
    """The file of a config.

    Args:
      name_or_path: a name in train/configs/, or the path to a Python file that has get_config().

    Returns:
      The path of an existing file.

    Raises:
      UsageError: there is no such name or file.
    """
    names = [summary.name for summary in list_configs()]
    if name_or_path in names:
        return CONFIGS / f"{name_or_path}.py"
    path = pathlib.Path(name_or_path).expanduser()
    if path.suffix != ".py" and len(path.parts) == 1:
        raise unknown_name("config", name_or_path, names)
    if not path.is_file():
        raise UsageError(f"there is no config file {name_or_path!r}; give the path of a .py file that has get_config()")
    return path


def load_config(name_or_path: str) -> ConfigDict:
    """The config of that name or file, completed with the defaults of train/configs/defaults.py.

    Args:
      name_or_path: a name in train/configs/, or the path to a Python file that has get_config().

    Returns:
      A new ConfigDict; `validate` it after the overrides.

    Raises:
      UsageError: no such config, or the file cannot be run, or it sets a field that does not exist or a wrong type.
    """
    path = config_path(name_or_path)
    spec = importlib.util.spec_from_file_location(f"train_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name_or_path!r} is not a Python file; a config is a .py file that has get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UsageError(f"{path} has no function get_config(); see train/configs/defaults.py for how one looks")
        config = module.get_config()
    except UsageError:
        raise
    except Exception as error:  # the user's own file: say where and what, without our frames around it
        raise UsageError(f"{_where(path, error)}: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(config, Mapping | ConfigDict):
        raise UsageError(f"get_config() of {path} returned {type(config).__name__}, not an ml_collections.ConfigDict")
    return _completed(_plain(config), source=f" (in {path})")


def _where(path: pathlib.Path, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).splitlines()[0]
    return text.split(" Other fields present")[0]  # ml_collections prints the whole config after that


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """A copy of the config with some fields changed.

    The type of the present value decides how the text is read: an int where a float stands is a float; true/false,
    yes/no, on/off and 1/0 are booleans; a tuple is written 0.8,0.1,0.1 with or without parentheses. In the groups
    `fields` and `options` any key is legal and its value is read as a Python literal, or as text where it is none.

    Args:
      config: as from `load_config`; not changed.
      overrides: "optimizer.learning_rate=3e-3", with or without a leading "config.".

    Returns:
      A new ConfigDict.

    Raises:
      UsageError: no such field, or the text does not fit the field's type.
    """
    config = copy.deepcopy(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip().removeprefix("config.")
        if not equals:
            raise UsageError(f"config.{path} was given no value; write --config.{path}=VALUE")
        *groups, name = path.split(".")
        group = config
        for depth, key in enumerate(groups, start=1):
            if key not in group or not isinstance(group[key], ConfigDict):
                raise _unknown_field(config, path) if key not in group else _not_a_group(path, groups[:depth])
            group = group[key]
        is_open = any(key in OPEN_GROUPS for key in groups)
        if name not in group and not is_open:
            raise _unknown_field(config, path)
        group[name] = _read(f"config.{path}", text.strip(), group.get(name), is_open)
    return config


def _not_a_group(path: str, groups: list[str]) -> UsageError:
    field = "config." + ".".join(groups)
    return UsageError(f"config.{path} does not exist: {field} is a single value; write --{field}=VALUE")


def _read(path: str, text: str, present: Any, is_open: bool) -> Any:
    """The value that the text stands for, of the type of the present value."""
    if isinstance(present, ConfigDict):
        value = _literal(text)
        if not path.endswith(OPEN_GROUPS) or not isinstance(value, dict):
            example = f"{path}.{'name' if 'name' in present else next(iter(present), 'NAME')}"
            raise UsageError(f"{path} is a group of fields, not a value; set them one by one, e.g. --{example}=VALUE")
        return ConfigDict(value)
    if is_open:
        value = _literal(text)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = BOOLEANS[value.lower()]
        if not isinstance(present, int | float):
            return value
        return _coerced(path, value, present)
    if isinstance(present, str):
        return text
    if isinstance(present, bool):
        return _coerced(path, BOOLEANS.get(text.lower(), text), present)
    return _coerced(path, _literal(text), present)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _coerced(path: str, value: Any, present: Any) -> Any:
    """The value in the type of the present one, or an error that says both."""
    if isinstance(present, tuple) and isinstance(value, tuple | list):
        # elements follow the present ones, the last of which stands for any further
        likes = [present[min(i, len(present) - 1)] for i in range(len(value))] if present else value
        return tuple(_coerced(f"{path}[{i}]", v, like) for i, (v, like) in enumerate(zip(value, likes, strict=True)))
    if isinstance(present, bool) or isinstance(value, bool):
        if type(present) is type(value):
            return value
    elif isinstance(present, float) and isinstance(value, int | float):
        if math.isfinite(value):
            return float(value)
    elif isinstance(present, int) and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5 is an integer to whoever writes it
    elif isinstance(value, type(present)):
        return value
    kind = {bool: "true/false", float: "float", int: "int", tuple: "tuple", str: "text"}[type(present)]
    article = "an" if kind == "int" else "a"
    raise UsageError(f"{path} is {article} {kind} field (now {present!r}), and got {value!r}")


def _unknown_field(config: ConfigDict, path: str) -> UsageError:
    """The error for a field that does not exist, with the nearest that does by its full path."""
    paths = [name for name, _ in flatten(config)]
    groups = {name.rpartition(".")[0] for name in paths} - {""}
    parents, _, leaf = path.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in paths}
    in_group = {name: leaf for name, leaf in leaves.items() if name.rpartition(".")[0] == parents}
    if parents and in_group:  # the group is right: a slip in the field's name
        close = difflib.get_close_matches(leaf, in_group.values(), n=1, cutoff=0.6)
        nearest = [f"{parents}.{name}" for name in close]
        hint = f"the fields of config.{parents} are {', '.join(in_group.values())}"
    else:
        nearest = [name for name, own in leaves.items() if own == leaf.lower()]  # right but for the group
        nearest = nearest or difflib.get_close_matches(path, [*paths, *groups], n=1, cutoff=0.6)
        hint = f"the fields and groups of config are {', '.join(config)}"
    initials = [name for name, own in leaves.items() if "".join(w[0] for w in own.split("_")) == leaf.lower()]
    if nearest or initials:
        hint = f"did you mean {' or '.join('config.' + name for name in (nearest or initials)[:3])}?"
    return UsageError(f"there is no field config.{path}; {hint}")


def flatten(config: ConfigDict | Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field as (dotted path, value), in the order of the alphabet; an empty open group is one field, {}."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping) and len(value):
            yield from ((f"{key}.{name}", leaf) for name, leaf in flatten(value))
        else:
            yield key, {} if isinstance(value, ConfigDict) else value


def differences(stored: ConfigDict, given: ConfigDict, *, ignore: Iterable[str] = ()) -> list[str]:
    """What differs between two configs, one line a field (no arrays, no shapes).

    Args:
      stored: the config of a run.
      given: the config asked for.
      ignore: beginnings of dotted paths that may differ.

    Returns:
      Lines such as "config.seed: 0 stored, 1 given".
    """
    before, after = dict(flatten(stored)), dict(flatten(given))
    absent = "not set"
    return [
        f"config.{path}: {before.get(path, absent)!r} stored, {after.get(path, absent)!r} given"
        for path in [*before, *(path for path in after if path not in before)]
        if before.get(path, absent) != after.get(path, absent) and not path.startswith(tuple(ignore))
    ]


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON text; tuples become lists."""
    return json.dumps(_plain(config), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; fields that were added since take their defaults.

    Args:
      text: JSON.

    Returns:
      A ConfigDict equal to the one written: lists become tuples again.

    Raises:
      UsageError: not JSON, or not a config.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"the stored config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the stored config is not a JSON object, it starts with {text[:20]!r}")
    return _completed(_tuples(values), source=" (in the stored config)")


def _plain(config: Any) -> Any:
    if isinstance(config, ConfigDict | Mapping):
        return {key: _plain(value) for key, value in config.items()}
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(child) for key, child in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _completed(values: dict[str, Any], source: str) -> ConfigDict:
    """The defaults with these values laid over them, each checked like an override."""
    config = defaults.get_config()

    def lay(group: ConfigDict, given: Mapping[str, Any], prefix: str, is_open: bool) -> None:
        for key, value in given.items():
            path = prefix + key
            present = group.get(key)
            if is_open:
                group[key] = value
            elif key not in group:
                raise UsageError(f"{_unknown_field(config, path)}{source}")
            elif isinstance(present, ConfigDict) != isinstance(value, Mapping):
                kind = "a group of fields" if isinstance(present, ConfigDict) else "a single value"
                raise UsageError(f"config.{path} is {kind}, and got {value!r}{source}")
            elif isinstance(present, ConfigDict):
                lay(present, value, path + ".", key in OPEN_GROUPS)
            else:
                try:
                    group[key] = _coerced(f"config.{path}", value, present)
                except UsageError as error:
                    raise UsageError(f"{error}{source}") from None

    lay(config, values, "", False)
    return config
