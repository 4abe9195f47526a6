"""Gradient clipping: by value, by the norm of the whole gradient, and unit by unit against the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl_core.optim import optimizer


def clipped(gradients, params=None, **options):
    """What of the gradients goes into the step, found from a descent with rate 1."""
    params = jax.tree.map(jnp.zeros_like, gradients) if params is None else params
    tx = optimizer("sgd", 1.0, **options)
    return jax.tree.map(jnp.negative, tx.update(gradients, tx.init(params), params)[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1e-6, 0.3, 1.0, 40.0, 1e6])
def test_clipping_by_norm(size, seed):
    """W38 (course notes, eq. 24): a norm up to λ is left alone, a larger one becomes λ; the direction never changes."""
    bound = 1.5
    shapes = {"kernel": (3, 2, 2, 4), "bias": (4,), "scalar": ()}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), 3), strict=True))
    gradients = {name: size * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}
    before, after = gradients, clipped(gradients, clip_norm=bound)
    norm = optax.tree.norm(before)
    if norm <= bound:
        jax.tree.map(np.testing.assert_array_equal, after, before)
    else:
        assert optax.tree.norm(after) == pytest.approx(bound, rel=1e-6)
    # the same direction: one positive factor takes every coordinate from before to after
    factor = optax.tree.norm(after) / norm
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, rtol=1e-5), after, before)


def test_clipping_by_norm_leaves_a_norm_at_the_bound():
    np.testing.assert_allclose(clipped(jnp.array([3.0, 4.0]), clip_norm=5.0), [3.0, 4.0], rtol=1e-6)


def test_clipping_by_value():
    np.testing.assert_array_equal(clipped(jnp.array([-3.0, -0.5, 0.25, 7.0]), clip_value=0.5), [-0.5, -0.5, 0.25, 0.5])


@pytest.mark.parametrize(("shape", "axes"), [((3, 3, 4, 5), (0, 1, 2)), ((6, 5), (0,)), ((5,), (0,))])
def test_adaptive_clipping_bounds_every_unit_by_its_weights(shape, axes):
    """Brock et al. (2021), eq. 3: a unit is what feeds one output; ‖g‖ / max(‖w‖, 1e-3) never exceeds λ."""
    rng, bound = np.random.default_rng(0), 0.05
    weights, gradients = rng.normal(size=(2, *shape)).astype(np.float32)
    weights[..., 0] = 0  # a unit that starts at zero may still move
    gradients *= np.geomspace(1e-3, 10, shape[-1], dtype=np.float32)
    norm = lambda array: np.sqrt((array**2).sum(axes, keepdims=True))
    allowed = bound * np.maximum(norm(weights), 1e-3)
    expected = gradients * np.minimum(1, allowed / norm(gradients))
    result = clipped(jnp.asarray(gradients), jnp.asarray(weights), clip_adaptive=bound)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert (norm(np.asarray(result)) <= allowed * (1 + 1e-5)).all()
    assert (expected != gradients).any()


def test_what_is_clipped_is_the_gradient_without_the_decay():
    params, gradients = jnp.full((1, 2), 10.0), jnp.array([[30.0, 40.0]])
    result = clipped(gradients, params, clip_norm=5.0, weight_decay=0.1, decay="coupled")
    np.testing.assert_allclose(result, [[3.0 + 1.0, 4.0 + 1.0]], rtol=1e-6)


def test_value_is_clipped_before_norm():
    result = clipped(jnp.array([100.0, 4.0]), clip_value=3.0, clip_norm=1.0)
    np.testing.assert_allclose(result, [0.5**0.5, 0.5**0.5], rtol=1e-6)
