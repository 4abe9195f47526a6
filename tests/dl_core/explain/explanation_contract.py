"""What every explanation promises: the same numbers compiled, mapped, sharded, in few bits, and params left alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (8, 8, 3)
NUM_CLASSES = 5


def small_network(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Convolution, ReLU, pooling, skip, dense: [batch, 8, 8, 3] -> [batch, 5]. Without biases."""
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.named_scope("conv1"):
        x = convolve(images, params["conv1"])
    x = jax.nn.relu(x)
    with jax.named_scope("conv2"):
        y = convolve(x, params["conv2"])
    x = jax.nn.relu(x + y)
    x = x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4))
    with jax.named_scope("fc"):
        return x.reshape(len(x), -1) @ params["fc"]


def small_params(seed: int = 0) -> dict[str, jax.Array]:
    """Of `small_network`, scaled so that logits are of the order of one."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"conv1": (3, 3, 3, 6), "conv2": (3, 3, 6, 6), "fc": (4 * 4 * 6, NUM_CLASSES)}
    return {
        name: jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def small_images(batch: int = 8, seed: int = 1) -> jax.Array:
    """float32 [batch, 8, 8, 3] in [0, 1]."""
    return jax.random.uniform(jax.random.key(seed), (batch, *SHAPE))


def assert_keeps_the_contract(
    explain: Callable[..., Any],
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    bfloat16_atol: float | None = 0.1,
    over_params: bool = True,
) -> None:
    """Checks one method on `small_network`.

    Args:
      explain: (apply_fn, params, inputs, target) -> attributions, one array [batch, ...].
      rtol, atol: float32 in another order of summation.
      bfloat16_atol: as a share of the largest attribution; None where the method has no meaning in bfloat16.
      over_params: False for methods that cannot be mapped over stacked params.
    """
    params, images, target = small_params(), small_images(), jnp.arange(8) % NUM_CLASSES
    before = jax.tree.map(np.array, params)
    whole = np.asarray(explain(small_network, params, images, target))
    assert np.isfinite(whole).all()
    assert np.abs(whole).max() > 0
    close = lambda given, expected: np.testing.assert_allclose(given, expected, rtol=rtol, atol=atol)

    close(jax.jit(lambda p, x, t: explain(small_network, p, x, t))(params, images, target), whole)
    close(
        explain(small_network, params, images, lambda logits: logits[:, 2]), explain(small_network, params, images, 2)
    )

    targets = jnp.stack([target, (target + 1) % NUM_CLASSES])
    close(jax.vmap(lambda t: explain(small_network, params, images, t))(targets)[0], whole)

    if over_params:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), small_params(3), params)
        close(jax.vmap(lambda p: explain(small_network, p, images, target))(stacked)[1], whole)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    divided = explain(
        small_network,
        jax.device_put(params, everywhere),
        jax.device_put(images, over_batch),
        jax.device_put(target, over_batch),
    )
    close(divided, whole)

    if bfloat16_atol is not None:
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, images))
        few_bits = np.asarray(explain(small_network, *half, target), np.float32)
        np.testing.assert_allclose(few_bits, whole, rtol=0, atol=bfloat16_atol * np.abs(whole).max())

    jax.tree.map(np.testing.assert_array_equal, params, before)
