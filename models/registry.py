"""Models by name, with the names of torchvision and timm.

A family registers its module under one or many names, each with the fields that the name stands for:

    @register("lenet5")
    class LeNet5(nn.Module): ...

    for depth, stage_sizes in {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}.items():
        register(f"resnet{depth}", stage_sizes=stage_sizes, block="basic")(ResNet)

and imports itself in `models/__init__.py`. A module outside this package may register itself too.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dl_core.errors import UsageError, unknown_name

_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {}
_NOT_FIELDS = {"parent", "name", "num_classes"}  # Linen's own two, and the one that `create` names itself


def register(name: str, **preset: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Decorator that gives a module a name in the registry (no arrays).

    Args:
      name: what `create` will be asked for, lower case, as in torchvision or timm where they have the model.
      **preset: the fields that this name stands for; the module's own defaults hold for the others.

    Returns:
      A decorator that records the class and returns it unchanged.

    Raises:
      UsageError: the name belongs to another class, or a preset is no field of the module.
    """

    def record(module: type[nn.Module]) -> type[nn.Module]:
        known = _MODELS.get(name)
        if known and (known[0].__module__, known[0].__qualname__) != (module.__module__, module.__qualname__):
            raise UsageError(f"the model name {name!r} belongs to {known[0].__qualname__}; register under another name")
        _check_fields(name, module, preset)
        _MODELS[name] = (module, preset)
        return module

    return record


def create(name: str, /, *, num_classes: int, **fields: Any) -> nn.Module:
    """A model by name; `model.init(key, x)` gives its variables.

    Args:
      name: one of `list_models()`.
      num_classes: logits per example, >= 1.
      **fields: hyper-parameters that replace the name's own, e.g. `dtype="bfloat16"`, `width=16`.

    Returns:
      A frozen Linen module; `model.apply(variables, x, train=False)` maps images [batch, height, width, channels] to
      logits [batch, num_classes], float32.

    Raises:
      UsageError: unknown name, unknown field (the message names the nearest), or num_classes < 1.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    module, preset = _MODELS[name]
    _check_fields(name, module, fields)
    hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return module(num_classes=num_classes, **{**preset, **hashable})


def list_models(pattern: str = "*") -> list[str]:
    """The registered names that match a shell pattern, e.g. `"resnet*"`, in the order of registration (no arrays)."""
    return fnmatch.filter(_MODELS, pattern)


def _check_fields(name: str, module: type[nn.Module], given: dict[str, Any]) -> None:
    legal = [field.name for field in dataclasses.fields(module) if field.name not in _NOT_FIELDS]
    for field in given:
        if field not in legal:
            nearest = "".join(
                f"did you mean {near!r}? " for near in difflib.get_close_matches(field, legal, n=1, cutoff=0.0)
            )
            raise UsageError(f"model {name!r} has no field {field!r}; {nearest}its fields: {', '.join(legal)}")
