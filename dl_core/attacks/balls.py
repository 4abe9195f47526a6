"""Balls in three norms around images: lengths, steepest directions, projections and random points.

An attack changes an image x by at most eps: ‖x* − x‖ ≤ eps in the maximum norm "linf", the Euclidean norm "l2" or the
sum of absolute values "l1". All values of one image count as one vector.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

NORMS = ("linf", "l2", "l1")


def distance(perturbation: Float[Array, "batch ..."], norm: str) -> Float[Array, " batch"]:
    """The length of each image's perturbation.

    Args:
      perturbation: adversarial minus original.
      norm: "linf", "l2" or "l1".

    Returns:
      In the units of the images. Its gradient is finite, also where nothing was moved.
    """
    flat = jnp.abs(perturbation.reshape(len(perturbation), -1))
    if norm == "linf":
        return flat.max(axis=1)
    if norm == "l1":
        return flat.sum(axis=1)
    # divided by the largest value first: squares of very small or very large values leave the range of floats
    largest = jax.lax.stop_gradient(flat.max(axis=1, keepdims=True))
    squares = ((flat / jnp.where(largest > 0, largest, 1)) ** 2).sum(axis=1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)) * largest[:, 0], 0)


def unit_step(gradient: Float[Array, "batch ..."], norm: str, *, share: float = 0.0) -> Float[Array, "batch ..."]:
    """For each image, the direction of length 1 in the norm along which the linearised loss rises most.

    Args:
      gradient: of the loss, for each image.
      norm: "linf": the sign of every value; "l2": the gradient itself; "l1": the values of the largest gradient alone.
      share: of "l1", in [0, 1]: the part of the values that moves, at least one; all of them by the same amount (Tramèr
        and Boneh, 2019, https://arxiv.org/abs/1904.13000, who take 0.01).

    Returns:
      Same shape; zero where the gradient is zero.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    flat = gradient.reshape(len(gradient), -1)
    if norm == "l2":
        # scaled before it is measured: the gradients of a saturated network are too small to be squared
        largest = jnp.abs(flat).max(axis=1, keepdims=True)
        scaled = flat / jnp.where(largest > 0, largest, 1)
        return (scaled / jnp.maximum(distance(scaled, "l2"), 1)[:, None]).reshape(gradient.shape)
    moved = max(1, round(share * flat.shape[1]))
    _, indices = jax.lax.top_k(jnp.abs(flat), moved)
    rows = jnp.arange(len(flat))[:, None]
    chosen = jnp.zeros_like(flat).at[rows, indices].set(1)
    signs = chosen * jnp.sign(flat)
    return (signs / jnp.maximum(jnp.abs(signs).sum(axis=1, keepdims=True), 1)).reshape(gradient.shape)


def project(
    perturbed: Float[Array, "batch ..."],
    images: Float[Array, "batch ..."],
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    bounds: tuple[float, float],
    norm: str,
) -> Float[Array, "batch ..."]:
    """Back into the ball around the images, then into the bounds, which never leads out of the ball again.

    Args:
      perturbed: changed images.
      images: the originals, inside the bounds.
      eps: radius, one number or one for each image.
      bounds: smallest and largest value of an image.
      norm: "linf", "l2" or "l1".

    Returns:
      For "linf" the nearest point of ball and bounds together; else the nearest of the ball, clipped.
    """
    radius = per_image(jnp.asarray(eps, images.dtype), images)
    change = perturbed - images
    if norm == "linf":
        change = jnp.clip(change, -radius, radius)
    elif norm == "l2":
        length = per_image(distance(change, "l2"), images)
        change = change * jnp.minimum(1, radius / jnp.where(length > 0, length, 1))
    else:
        change = _project_l1(change.reshape(len(images), -1), radius.reshape(-1, 1)).reshape(images.shape)
    return jnp.clip(images + change, *bounds)


def _project_l1(vectors: Float[Array, "batch size"], radius: Float[Array, "rows 1"]) -> Float[Array, "batch size"]:
    """Nearest point of the ball: every value shrunk by one θ ≥ 0 (Duchi et al., 2008, ICML, figure 1)."""
    lengths = jnp.sort(jnp.abs(vectors), axis=1)[:, ::-1]
    surplus = jnp.cumsum(lengths, axis=1) - radius
    counts = jnp.arange(1, vectors.shape[1] + 1, dtype=vectors.dtype)[None]
    θ = jnp.max(surplus / counts, axis=1, keepdims=True)  # the θ of the largest set that all stay positive
    return jnp.sign(vectors) * jnp.maximum(jnp.abs(vectors) - jnp.maximum(θ, 0), 0)


def random_in_ball(
    keys: Key[Array, " batch"],
    images: Float[Array, "batch ..."],
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    norm: str,
) -> Float[Array, "batch ..."]:
    """A perturbation for each image, uniform over the ball (Barthe et al., 2005, Annals of Probability 33).

    Args:
      keys: one for each image.
      images: of these shapes.
      eps: radius, one number or one for each image.
      norm: "linf", "l2" or "l1".

    Returns:
      Perturbations; the bounds are not looked at.
    """
    size, shape = images[0].size, images.shape[1:]
    radius = per_image(jnp.asarray(eps, images.dtype), images)
    if norm == "linf":
        return radius * jax.vmap(lambda key: jax.random.uniform(key, shape, images.dtype, -1, 1))(keys)

    def one(key: Key[Array, ""]) -> Float[Array, "..."]:
        direction_key, radius_key = jax.random.split(key)
        draw = jax.random.normal if norm == "l2" else jax.random.laplace
        direction = draw(direction_key, (1, size), images.dtype)
        far = jax.random.uniform(radius_key, (), images.dtype) ** (1 / size)
        return (far * direction / distance(direction, norm)[:, None]).reshape(shape)

    return radius * jax.vmap(one)(keys)


def per_image(values: Float[Array, "*batch"], images: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """One number, or one for each image, given the axes of the images to be multiplied with them.

    Args:
      values: shape [] or [batch].
      images: the images.

    Returns:
      Shape [1 or batch, 1, …, 1].
    """
    return values.reshape((-1,) + (1,) * (images.ndim - 1))


def image_keys(key: Key[Array, "*batch"], batch: int) -> Key[Array, " batch"]:
    """One key for each image; images keep theirs when a batch is divided, if these keys are divided with it.

    Args:
      key: one key, or already one for each image [batch].
      batch: number of images.

    Returns:
      Keys.
    """
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
