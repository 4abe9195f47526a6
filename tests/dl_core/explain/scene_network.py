"""A small convolutional network that names the colour of the one object in a procedural scene, and where the object is.

The scenes are drawn, not photographed. The object alone decides the class: its colour is saturated and the background
pale, whatever its pattern; so an explanation that follows the network has to lie on the object. Training takes seconds
and happens once in a test process.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl_core.data.scenes import key_of, masks, render_batch, sample_batch

SIZE, STEPS, BATCH, NUM_EXPLAINED = 32, 250, 32, 32
OPTIONS = {"sizes": (110, 230)}  # radii that leave nine tenths of the image to the background


class SceneNetwork(NamedTuple):
    """What is explained.

    apply_fn: (params, images) -> logits [batch, 8].
    params: trained; random_params: as training started, of the same sizes.
    images: float32 [32, 32, 32, 3] in [-1, 1], all classified correctly, none seen in training.
    labels: int32 [32].
    masks: bool [32, 32, 32], where the object is.
    accuracy: on scenes not seen in training.
    """

    apply_fn: Callable[[Any, jax.Array], jax.Array]
    params: Any
    random_params: Any
    images: jax.Array
    labels: jax.Array
    masks: jax.Array
    accuracy: float


@functools.cache
def scene_network(seed: int = 0) -> SceneNetwork:
    """The network of one seed, of its weights and of its scenes; trained at the first call."""
    key = key_of(seed)
    random_params = _random_params(jax.random.fold_in(key, 1))
    optimizer = optax.adam(optax.linear_schedule(5e-3, 0, STEPS))

    @jax.jit
    def step(params, state, images, labels):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(apply_fn(p, images), labels).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = random_params, optimizer.init(random_params)
    images, labels, _ = _scenes(key, 0, STEPS * BATCH)
    for i in range(STEPS):
        part = slice(i * BATCH, (i + 1) * BATCH)
        params, state = step(params, state, images[part], labels[part])

    images, labels, inside = _scenes(key, STEPS * BATCH, 256)
    correct = np.asarray(jax.jit(apply_fn)(params, images).argmax(axis=1) == labels)
    chosen = np.flatnonzero(correct)[:NUM_EXPLAINED]
    assert len(chosen) == NUM_EXPLAINED
    return SceneNetwork(
        apply_fn, params, random_params, images[chosen], labels[chosen], inside[chosen], float(correct.mean())
    )


def apply_fn(params: Any, images: jax.Array) -> jax.Array:
    """Three convolutions with biases and ReLU, max-pooling after two of them, the mean of the map, a dense layer."""
    x = images
    for i, name in enumerate(("conv1", "conv2", "conv3")):
        with jax.named_scope(name):
            kernel, bias = params[name]
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            x = jax.nn.relu(x + bias[None, None, None])
        if i < 2:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    with jax.named_scope("fc"):
        kernel, bias = params["fc"]
        return x.mean(axis=(1, 2)) @ kernel + bias[None]


def relevance_inside(attributions: jax.Array, inside: jax.Array) -> float:
    """Mean share of the absolute attribution (summed over the channels) that lies inside the masks."""
    sizes = jnp.abs(attributions.sum(axis=-1))
    shares = (sizes * inside).sum(axis=(1, 2)) / sizes.sum(axis=(1, 2))
    return float(shares.mean())


def area_inside(inside: jax.Array) -> float:
    """Mean share of the image that the masks cover: what an explanation by chance would have inside."""
    return float(inside.mean())


def _scenes(key: jax.Array, first: int, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images in [-1, 1], colours and masks of scenes first … first + n."""
    scenes = sample_batch(key, first, n, **OPTIONS)
    images = jnp.asarray(render_batch(scenes, SIZE), jnp.float32) / 127.5 - 1
    inside = jax.jit(jax.vmap(lambda scene: masks(scene, SIZE)[0]))(scenes)
    return images, scenes.colour[:, 0], inside


def _random_params(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """He's variance, zero biases."""
    shapes = {"conv1": (3, 3, 3, 12), "conv2": (3, 3, 12, 16), "conv3": (3, 3, 16, 16), "fc": (16, 8)}
    return {
        name: (jax.random.normal(part, shape) * (2 / np.prod(shape[:-1])) ** 0.5, jnp.zeros(shape[-1]))
        for part, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True)
    }
