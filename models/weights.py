"""Weights from torchvision and timm, and back again.

Both write a state dict: name -> array, e.g. "layer1.0.conv1.weight". Our modules bear the same names, so a family needs
only a `TorchLayout` that says where it differs; the rest is the same for all: kernels are HWIO here and OIHW there,
dense kernels [in, out] and [out, in], BatchNorm's `scale`, `mean` and `var` are `weight`, `running_mean` and
`running_var`. The layout maps our names to theirs, and both directions walk over our variables: so export is the exact
inverse of loading. Files are read without unpickling anything but tensors.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from dl_core.errors import UsageError
from models.registry import create
from models.torch_layouts import TorchLayout, substitute, torch_layout

Path = tuple[str, ...]  # of a leaf: ("params", "layer1_0", "conv1", "kernel")
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"  # in torch's BatchNorm


class LoadReport(NamedTuple):
    """What became of the weights; names are torch's.

    loaded: copied as they were, but for the order of their axes.
    adapted: the stem's kernel, where the number of input channels differs: every new channel gets the mean of the old
      ones times old / new channels, so a grey image gives what it gave before. Position embeddings, where the images
      have another size: resampled as the weights' library does it.
    missing: of the heads, where the weights have none or one for another number of classes; freshly initialised.
    unexpected: of the weights' heads, not used.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_torch(
    name: str,
    weights: Mapping[str, Any] | str | os.PathLike,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    key: Array | None = None,
    **fields: Any,
) -> tuple[dict[str, Any], LoadReport]:
    """Variables of `create(name, num_classes=…, **fields)` from torch weights.

    Args:
      name: a registered name whose family torchvision or timm has.
      weights: a state dict (name -> torch tensor or array), or the path of a `.safetensors`, `.pth` or `.pt` file.
      num_classes: of the model; by default that of the weights. With another number the head starts fresh.
      image_shape: height, width and channels of the images, by default the family's usual size and 3 channels (for a
        vision transformer the size of the weights' own images). With another number of channels than the weights' the
        stem is adapted, with another size the position embeddings.
      key: of the fresh heads; `jax.random.key(0)` by default.
      **fields: as for `create`, e.g. `param_dtype="float64"`.

    Returns:
      The variables {"params": …, "batch_stats": …} in the model's param_dtype, and the LoadReport.

    Raises:
      UsageError: unknown keys, missing keys or wrong shapes outside heads and stem (the message lists them), an unknown
        file type, or a library that the file needs is not installed.
    """
    state = _state_dict(weights)
    layout = torch_layout(create(name, num_classes=1, **fields), state)
    state = {substitute(layout.old_keys, torch_key): value for torch_key, value in state.items()}
    if num_classes is None:
        num_classes = _count_classes(state, layout)
    model = create(name, num_classes=num_classes, **fields)
    images = jnp.zeros(image_shape or (layout.image_size, layout.image_size, 3))[None]
    key = jax.random.key(0) if key is None else key
    init = lambda key: traverse_util.flatten_dict(model.init(key, images))

    values, kinds, wrong = {}, {"loaded": [], "adapted": [], "missing": []}, []
    for path, leaf in jax.eval_shape(init, key).items():
        if path[0] == "batch_stats":  # Linen starts them in float32, but computes in what it is given
            leaf = leaf.update(dtype=jnp.promote_types(leaf.dtype, model.param_dtype))
        torch_key = _torch_key(path, layout)
        kind, values[path] = _match(path, state.get(torch_key), leaf, layout, images.shape[1:3])
        if kind == "wrong":
            given = f"has shape {state[torch_key].shape}" if torch_key in state else "is missing"
            needed = jax.eval_shape(lambda x, path=path: _to_torch(path, x, layout), leaf).shape
            wrong.append(f"{torch_key} {given}, needed {needed}")
        else:
            kinds[kind].append(torch_key)
    known = {_torch_key(path, layout) for path in values} - set(kinds["missing"])
    left = [torch_key for torch_key in state if torch_key not in known and not torch_key.endswith(_COUNTER)]
    heads = tuple(layout.rename(tuple(head.split("/"))) + "." for head in layout.heads)
    wrong += [f"{torch_key} is unknown" for torch_key in left if not torch_key.startswith(heads)]
    if wrong:
        raise UsageError(f"the weights do not fit {name!r}: {'; '.join(wrong)}")

    fresh = [path for path, value in values.items() if value is None]
    if fresh:  # compiled with these outputs only, so nothing of the network runs but the initialisers of its heads
        initialised = jax.jit(lambda key: [init(key)[path] for path in fresh])(key)
        values.update(zip(fresh, initialised, strict=True))
    return traverse_util.unflatten_dict(values), LoadReport(
        **{k: tuple(v) for k, v in kinds.items()}, unexpected=tuple(left)
    )


def export_torch(
    name: str, variables: Mapping[str, Any], *, library: str | None = None, **fields: Any
) -> dict[str, np.ndarray]:
    """Variables as torch's state dict: the inverse of `load_torch`, bit for bit.

    Args:
      name: the model's registered name.
      variables: {"params": …, "batch_stats": …}; other collections are left out.
      library: "torchvision" (the default) or "timm", for vision transformers, to which they give different names.
      **fields: as for `create`, where they change the family's layout (`preactivation`).

    Returns:
      Torch's name -> array, for `safetensors.numpy.save_file` or, as tensors, `load_state_dict`. BatchNorm's count of
      batches, which Flax does not keep, is 0.

    Raises:
      UsageError: neither torchvision nor timm has the family, or the library is unknown.
    """
    layout = torch_layout(create(name, num_classes=1, **fields), library=library)
    state = {}
    for collection in ("params", "batch_stats"):
        for path, value in traverse_util.flatten_dict({collection: variables.get(collection, {})}).items():
            torch_key = _torch_key(path, layout)
            state[torch_key] = np.array(_to_torch(path, np.asarray(value), layout), order="C")
            if path[-1] == "mean":
                state[torch_key.removesuffix("running_mean") + _COUNTER] = np.zeros((), np.int64)
    return state


def _torch_key(path: Path, layout: TorchLayout) -> str:
    key = f"{layout.rename(path[1:-1])}.{_TORCH_LEAVES.get(path[-1], path[-1])}"
    return substitute(layout.rename_keys, key)


def _count_classes(state: Mapping[str, np.ndarray], layout: TorchLayout) -> int:
    bias = f"{layout.rename((layout.heads[0],))}.bias"
    if bias not in state:
        raise UsageError(f"the weights have no {bias!r} whose classes could be counted: give num_classes")
    return len(state[bias])


def _match(
    path: Path,
    value: np.ndarray | None,
    leaf: jax.ShapeDtypeStruct,
    layout: TorchLayout,
    image_sides: tuple[int, int],
) -> tuple[str, Array | None]:
    """What becomes of one leaf ("loaded", "adapted", "missing" or "wrong"), and its value where there is one."""
    module = "/".join(path[1:-1])
    if value is not None:
        value = _from_torch(path, value, layout)
        if value.shape == leaf.shape:
            return "loaded", jnp.array(value, leaf.dtype)  # a copy: torch changes its tensors in place
        if module == layout.stem and value.shape[:2] + value.shape[3:] == leaf.shape[:2] + leaf.shape[3:]:
            mean = value.mean(axis=2, keepdims=True) * (value.shape[2] / leaf.shape[2])
            return "adapted", jnp.array(np.broadcast_to(mean, leaf.shape), leaf.dtype)
        if path[-1] in layout.resample:
            value = layout.resample[path[-1]](jnp.asarray(value), image_sides)
            if value.shape == leaf.shape:
                return "adapted", value.astype(leaf.dtype)
    return ("missing" if f"{module}/".startswith(tuple(f"{head}/" for head in layout.heads)) else "wrong"), None


def _from_torch(path: Path, value: np.ndarray, layout: TorchLayout) -> np.ndarray:
    """One of torch's arrays with its axes in our order."""
    module = "/".join(path[1:-1])
    if path[-1] == "gain":  # of scaled weight standardisation: one number a channel
        return value.reshape(-1)
    if path[-1] != "kernel" or value.ndim not in (2, 4):
        return value
    bins = layout.bins.get(module, 1)
    if module in layout.as_convolution:
        value = value.reshape(value.shape[:2])
    if value.ndim == 2 and value.shape[1] % bins**2 == 0:
        maps = value.reshape(len(value), -1, bins, bins)
        return maps.transpose(2, 3, 1, 0).reshape(-1, len(value))
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_torch(path: Path, value: Any, layout: TorchLayout) -> Any:
    """The inverse of `_from_torch`."""
    module = "/".join(path[1:-1])
    if path[-1] == "gain":
        return value.reshape(-1, 1, 1, 1)
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    bins, outputs = layout.bins.get(module, 1), value.shape[1]
    if module in layout.as_convolution:
        return value.T[:, :, None, None]
    return value.reshape(bins, bins, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)


def _state_dict(weights: Mapping[str, Any] | str | os.PathLike) -> dict[str, np.ndarray]:
    """A state dict, or the file that holds one, as arrays."""
    if not isinstance(weights, Mapping):
        weights = _read(pathlib.Path(weights))
    for wrapper in ("state_dict", "model"):  # checkpoints keep the weights beside the optimizer's state
        if isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    return {name: _array(value) for name, value in weights.items()}


def _read(file: pathlib.Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    if file.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError:
            raise UsageError("reading .safetensors needs the package safetensors: pip install safetensors") from None
        return load_file(file)
    if file.suffix in (".pth", ".pt"):
        try:
            import torch
        except ImportError:
            raise UsageError(
                f"reading {file.suffix} needs torch: install it, or convert the file to .safetensors where it is"
            ) from None
        return torch.load(file, map_location="cpu", weights_only=True)
    raise UsageError(f"weights are read from .safetensors, .pth or .pt, got {file.name!r}")


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    return np.asarray(value)
