"""The projections of FAB and of APGD in "l1" against SciPy's solvers, which know nothing of their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.attacks.box_projection import project_hyperplane, project_l1_ball

SIZE, BOUNDS = 6, (-0.5, 1.25)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
hyperplane = jax.jit(functools.partial(project_hyperplane, bounds=BOUNDS), static_argnames="norm")
ball = jax.jit(functools.partial(project_l1_ball, bounds=BOUNDS))


def problems(seed, batch=12):
    """Points (some of their values at a bound), normals (some values zero or equal), offsets of both signs."""
    random = np.random.default_rng(seed)
    points = random.uniform(*BOUNDS, (batch, SIZE))
    points[random.random(points.shape) < 0.2] = BOUNDS[1]
    normals = random.normal(size=(batch, SIZE)) * 10.0 ** random.integers(-3, 4, (batch, 1))
    normals[random.random(normals.shape) < 0.15] = 0
    normals[:, 1] = -normals[:, 0]
    reach = (np.abs(normals) * np.where(normals > 0, BOUNDS[1] - points, points - BOUNDS[0])).sum(axis=1)
    other_reach = (np.abs(normals) * np.where(normals > 0, points - BOUNDS[0], BOUNDS[1] - points)).sum(axis=1)
    offsets = random.uniform(-other_reach, reach)
    return points, normals, offsets


def shortest(point, normal, offset, norm):
    """The smallest length in the norm, by SciPy."""
    low, high = BOUNDS[0] - point, BOUNDS[1] - point
    if norm == "l2":
        found = scipy.optimize.minimize(
            lambda d: (d**2).sum(),
            np.zeros(SIZE),
            jac=lambda d: 2 * d,
            bounds=list(zip(low, high, strict=True)),
            constraints={
                "type": "eq",
                "fun": lambda d: (normal @ d - offset) / np.abs(normal).max(),
                "jac": lambda d: normal / np.abs(normal).max(),
            },
            options={"ftol": 1e-14, "maxiter": 200},
        )
        assert found.success
        return np.sqrt(found.fun)
    identity = np.eye(SIZE)
    if norm == "linf":  # unknowns d and their largest absolute value
        cost, limits = (
            np.append(np.zeros(SIZE), 1),
            np.block([[identity, -np.ones((SIZE, 1))], [-identity, -np.ones((SIZE, 1))]]),
        )
        bounds, equation = [*zip(low, high, strict=True), (0, None)], np.append(normal, 0)
    else:  # unknowns d and their absolute values
        cost, limits = (
            np.append(np.zeros(SIZE), np.ones(SIZE)),
            np.block([[identity, -identity], [-identity, -identity]]),
        )
        bounds, equation = [*zip(low, high, strict=True), *[(0, None)] * SIZE], np.append(normal, np.zeros(SIZE))
    found = scipy.optimize.linprog(
        cost,
        limits,
        np.zeros(len(limits)),
        equation[None] / np.abs(normal).max(),
        [offset / np.abs(normal).max()],
        bounds,
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000))
def test_the_way_to_the_hyperplane_is_as_short_as_scipy_finds(norm, seed):
    with jax.enable_x64(True):
        points, normals, offsets = problems(seed)
        d = np.asarray(hyperplane(jnp.asarray(points), jnp.asarray(normals), jnp.asarray(offsets), norm=norm))
    assert (points + d >= BOUNDS[0] - 1e-12).all()
    assert (points + d <= BOUNDS[1] + 1e-12).all()
    np.testing.assert_allclose((normals * d).sum(axis=1), offsets, atol=1e-9 * np.abs(normals).max())
    expected = [shortest(*problem, norm) for problem in zip(points, normals, offsets, strict=True)]
    # SciPy's SLSQP ends at a relative 1e-7 of the length or so
    np.testing.assert_allclose(np.linalg.norm(d, ORDERS[norm], axis=1), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hyperplane_out_of_reach_gives_the_nearest_corner(norm):
    points = jnp.array([[0.0, 0.5, 1.0, 0.25]])
    normals = jnp.array([[1.0, -2.0, 0.0, 1e-6]])
    d = project_hyperplane(points, normals, jnp.array([1e3]), (0.0, 1.0), norm)
    np.testing.assert_array_equal(points + d, [[1, 0, 1, 1]])
    d = project_hyperplane(points, normals, jnp.array([-1e3]), (0.0, 1.0), norm)
    np.testing.assert_array_equal(points + d, [[0, 1, 1, 0]])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_normals_of_any_size_give_finite_ways(norm, scale):
    """The gradients of a network that is very sure are too small to be squared in float32."""
    normals = scale * jnp.array([[1.0, -2.0, 0.5]])
    d = project_hyperplane(jnp.full((1, 3), 0.5), normals, jnp.array([scale]), (0.0, 1.0), norm)
    expected = {"linf": [2 / 7, -2 / 7, 2 / 7], "l2": [4 / 21, -8 / 21, 2 / 21], "l1": [0, -0.5, 0]}[norm]
    np.testing.assert_allclose(d[0], np.array(expected) if scale else np.zeros(3), rtol=1e-6)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000))
def test_the_nearest_point_of_ball_and_bounds_is_as_near_as_scipy_finds(seed):
    random = np.random.default_rng(seed)
    points = random.uniform(*BOUNDS, (6, SIZE))
    given_d, eps = random.normal(size=(6, SIZE)), random.uniform(0, 3, 6)
    eps[0] = 0
    with jax.enable_x64(True):
        d = np.asarray(ball(jnp.asarray(given_d), jnp.asarray(points), jnp.asarray(eps)))
    assert (np.abs(d).sum(axis=1) <= eps + 1e-12).all()
    assert (points + d >= BOUNDS[0] - 1e-12).all()
    assert (points + d <= BOUNDS[1] + 1e-12).all()
    for point, v, radius, ours in zip(points, given_d, eps, d, strict=True):
        # d = p − q with p, q >= 0 and their sum within the radius: a smooth problem
        room = np.concatenate([BOUNDS[1] - point, point - BOUNDS[0]])
        found = scipy.optimize.minimize(
            lambda pq, v=v: ((pq[:SIZE] - pq[SIZE:] - v) ** 2).sum(),
            np.zeros(2 * SIZE),
            jac=lambda pq, v=v: 2 * np.tile(pq[:SIZE] - pq[SIZE:] - v, 2) * np.repeat([1, -1], SIZE),
            bounds=[(0, limit) for limit in room],
            constraints={
                "type": "ineq",
                "fun": lambda pq, r=radius: r - pq.sum(),
                "jac": lambda pq: -np.ones(2 * SIZE),
            },
            options={"ftol": 1e-13, "maxiter": 300},
        )
        assert ((ours - v) ** 2).sum() <= found.fun + 1e-6
