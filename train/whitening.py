"""A first convolution that is set from the training images instead of learnt: `config.model.whiten`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dl_core.augment import photometric
from dl_core.errors import UsageError
from dl_core.whitening import patch_whitening
from train.run import Run
from train.state import TrainState

MOST_IMAGES = 5000  # more change the covariance of small patches by less than its rounding


def whiten_stem(run: Run, state: TrainState) -> TrainState:
    """The state before the first step, with the kernel of `config.model.whiten` as patch whitening of the images.

    It is trained like any other unless `config.transfer.freeze` names it.

    Args:
      run: from `train.run.prepare`.
      state: its first state, as global arrays.

    Returns:
      The state, unchanged where the config names no layer.

    Raises:
      UsageError: no such layer, or one with too few output channels.
    """
    layer = run.config.model.whiten
    if not layer:
        return state
    params = traverse_util.flatten_dict(state.params, sep="/")
    name = f"{layer}/kernel"
    if name not in params or params[name].ndim != 4:
        convolutions = ", ".join(key.removesuffix("/kernel") for key, leaf in params.items() if leaf.ndim == 4)
        raise UsageError(f"config.model.whiten names no convolution: {layer!r}; the model has {convolutions or 'none'}")
    kernel = params[name]
    size, _, channels, outputs = kernel.shape
    filters = 2 * size**2 * channels
    if outputs < filters or kernel.shape[1] != size:
        raise UsageError(
            f"config.model.whiten needs a square kernel with at least 2 × {size}² × {channels} = {filters} outputs; "
            f"{layer!r} has {'×'.join(map(str, kernel.shape))}"
        )
    train = run.dataset.train
    images = train.batch(np.arange(min(len(train), MOST_IMAGES)))["image"]
    mean, std = jnp.asarray(run.info.mean), jnp.asarray(run.info.std)
    whitening = jax.jit(lambda x: patch_whitening(photometric.normalize(photometric.to_float(x), mean, std), size))
    new = kernel.at[..., :filters].set(whitening(images).astype(kernel.dtype))
    new = jax.device_put(new, kernel.sharding)

    def replace(tree: Any) -> Any:
        return traverse_util.unflatten_dict({**traverse_util.flatten_dict(tree, sep="/"), name: new}, sep="/")

    params = replace(state.params)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)  # two owners: steps donate their state
    return state.replace(params=params, average=average)
