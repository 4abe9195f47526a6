"""What every attack promises: the same numbers compiled, mapped over ε and networks, and sharded; params left alone.

The network is trained, so that an attack has something to do: four classes of 8×8 images with a bright quadrant each.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl_core.attacks.balls import distance
from dl_core.attacks.result import AttackResult

NUM_CLASSES = 4


def small_network(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Convolution, ReLU, pooling, dense: [batch, 8, 8, 1] -> [batch, 4]."""
    x = jax.lax.conv_general_dilated(
        images - 0.5, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["bias"][None, None, None])
    x = x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4))
    return x.reshape(len(x), -1) @ params["dense"]


def quadrants(batch: int = 8, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """float32 [batch, 8, 8, 1] in [0, 1] with one brighter quadrant in noise, and which one it is."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, NUM_CLASSES, batch)
    images = random.uniform(0, 0.7, (batch, 2, 4, 2, 4, 1))
    images[np.arange(batch), labels // 2, :, labels % 2] += 0.3
    return jnp.asarray(images.reshape(batch, 8, 8, 1), jnp.float32), jnp.asarray(labels, jnp.int32)


@functools.cache
def trained_params(seed: int = 0) -> dict[str, jax.Array]:
    """Of `small_network`: right on nearly all quadrants."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "conv": jax.random.normal(keys[0], (3, 3, 1, 6)) / 3,
        "bias": jnp.zeros(6),
        "dense": jax.random.normal(keys[1], (96, NUM_CLASSES)) / 10,
    }
    images, labels = quadrants(512, seed=100 + seed)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(small_network(p, images), labels).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    return params


def assert_in_budget(result: AttackResult, images: Any, eps: Any, norm: str, bounds: Any = (0.0, 1.0)) -> None:
    """Inside the bounds, inside the ball, and the distance is what was moved."""
    assert float(result.adversarial.min()) >= bounds[0]
    assert float(result.adversarial.max()) <= bounds[1]
    moved = np.asarray(distance(result.adversarial - images, norm))
    # the sum and the difference with an image are rounded, for "l1" in each of its values
    assert (moved <= np.asarray(eps) * (1 + 1e-5) + 1e-6 * (images[0].size if norm == "l1" else 1)).all(), moved
    np.testing.assert_allclose(result.distance, moved, rtol=1e-4, atol=1e-6)


def assert_keeps_the_contract(
    attack: Callable[..., AttackResult],
    *,
    eps: float | None,
    norm: str,
    over_params: bool = True,
    atol: float = 1e-5,
    agreement: float = 1.0,
) -> None:
    """Checks one attack on `small_network`.

    Args:
      attack: (apply_fn, params, images, labels[, eps=]) -> AttackResult; a key is bound in it already.
      eps: radius; None for attacks without one, which look for the nearest example.
      norm: of the ball, or of the reported distance.
      over_params: False for attacks that cannot be mapped over stacked params.
      atol: of images; float32 in another order of summation.
      agreement: share of images that must agree between the ways to run it; below 1 where one flipped decision leads
        an image elsewhere.
    """
    params = trained_params()
    images, labels = quadrants()
    before = jax.tree.map(np.array, (params, images, labels))
    radius = {} if eps is None else {"eps": eps}
    whole = attack(small_network, params, images, labels, **radius)
    assert np.isfinite(whole.adversarial).all()
    assert bool((np.asarray(whole.adversarial) != np.asarray(images)).any())
    assert_in_budget(whole, images, np.inf if eps is None else eps, norm)
    missed = small_network(params, whole.adversarial).argmax(axis=1) != labels
    np.testing.assert_array_equal(whole.success, missed)

    def close(given: AttackResult, expected: AttackResult = whole) -> None:
        near = np.abs(np.asarray(given.adversarial) - np.asarray(expected.adversarial)).reshape(len(labels), -1).max(1)
        same = (near <= atol) & (np.asarray(given.success) == np.asarray(expected.success))
        assert same.mean() >= agreement, near

    close(jax.jit(lambda p, x, y: attack(small_network, p, x, y, **radius))(params, images, labels))

    if eps is not None:
        mapped = jax.vmap(lambda e: attack(small_network, params, images, labels, eps=e))(jnp.array([0.0, eps]))
        np.testing.assert_array_equal(mapped.adversarial[0], images)
        close(jax.tree.map(lambda leaf: leaf[1], mapped))
        each = attack(small_network, params, images, labels, eps=jnp.full(len(labels), eps).at[0].set(0))
        np.testing.assert_array_equal(each.adversarial[0], images[0])

    if over_params:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained_params(3), params)
        mapped = jax.vmap(lambda p: attack(small_network, p, images, labels, **radius))(stacked)
        close(jax.tree.map(lambda leaf: leaf[1], mapped))

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    close(
        attack(
            small_network,
            jax.device_put(params, everywhere),
            jax.device_put(images, over_batch),
            jax.device_put(labels, over_batch),
            **radius,
        )
    )
    jax.tree.map(np.testing.assert_array_equal, (params, images, labels), before)
