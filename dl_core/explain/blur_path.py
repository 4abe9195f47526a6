"""Integrated gradients along a path of ever sharper images, which starts from one that is blurred beyond recognition.

Xu, Venugopalan, Sundararajan (2020), "Attribution in Scale and Space", https://arxiv.org/abs/2004.03383, equation 3.

    attribution_i = ∫ ∂f_t / ∂x_i (L(σ)) ∂L_i / ∂σ dσ    from σ = max_sigma to 0, L(σ) the image blurred by σ

On this path details are destroyed, not darkened, so no new edges and no black pixels appear. The blur is Lindeberg's
Gaussian for pixels (1990, "Scale-space for discrete signals", https://doi.org/10.1109/34.49051): heat that spreads from
pixel to pixel for a time of σ² / 2, with nothing lost at the borders. It has variance σ² exactly, makes nothing
brighter or darker than it was, and its derivative is known.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import UsageError
from dl_core.explain.gradients import input_gradient
from dl_core.explain.path_integration import PathAttribution, accumulated, path_attribution, quadrature
from dl_core.explain.pieces import Progress, sum_over, variants_at_once
from dl_core.explain.target import ApplyFn, Target, check_target, explained_output
from dl_core.optim.options import Number, in_interval

Images = Float[Array, "batch height width channels"]


def blur_integrated_gradients(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    *,
    max_sigma: Number | None = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> PathAttribution:
    """Integrated gradients of the explained output while a blur of the images is lifted.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the images to explain, in any range.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      max_sigma: of the blur where the path starts, in pixels, > 0. By default the longer side of the images: of each
        channel then little more is left than its mean.
      n_steps: quadrature nodes, >= 1. They lie at σ = max_sigma · u², u in [0, 1], close together where the blur is
        small and an image changes most.
      method: the quadrature; see `integrated_gradients`.
      internal_batch_size: most rows (examples × nodes) that apply_fn is given at once; None bounds their size instead.
        Smaller needs less memory and gives the same result.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      PathAttribution, whose gap compares with the change from the blurred images, `blurred(inputs, max_sigma)`.

    Raises:
      UsageError: see `check_target`; inputs that are no images, a number out of its range, or an unknown method.
    """
    target = check_target(apply_fn, params, inputs, target)
    _check_images(inputs)
    max_sigma = float(max(inputs.shape[1:3])) if max_sigma is None else max_sigma
    in_interval("max_sigma", max_sigma, "(0, inf)")
    nodes_and_weights = quadrature(method, n_steps, accumulated(inputs))
    at_once = variants_at_once(internal_batch_size, inputs, n_steps)
    model, largest = Partial(apply_fn), jnp.asarray(max_sigma, accumulated(inputs))
    at_node = Partial(_at_node, model, params, inputs, target, largest)
    total = sum_over(at_node, nodes_and_weights, at_once=at_once, loop=loop, progress=progress)
    return _finish(model, params, inputs, target, largest, total)


def blurred(images: Images, sigma: Number | Float[Array | np.ndarray, " batch"]) -> Images:
    """The images after a Gaussian blur; mirrored at the borders.

    A baseline for integrated gradients: `integrated_gradients(…, baselines=blurred(images, 8.0))`. As SciPy's
    `gaussian_filter` in its mode "reflect", but for the Gaussian of pixels, which differs from the sampled one where
    sigma is small.

    Args:
      images: in any range.
      sigma: standard deviation in pixels, >= 0; one number, or one for each image. 0 is neutral.

    Returns:
      Same shape and dtype; the mean of each channel is kept, and no value leaves the range of the image.

    Raises:
      UsageError: no images, or a sigma out of its range.
    """
    _check_images(images)
    if jnp.ndim(sigma) == 0:
        in_interval("sigma", sigma, "[0, inf)")
    elif jnp.shape(sigma) != (len(images),):
        raise UsageError(
            f"sigma must be one number or one for each of the {len(images)} images, got shape {list(jnp.shape(sigma))}"
        )
    return _blurred(images, jnp.broadcast_to(jnp.asarray(sigma, accumulated(images)), (len(images),)))


@jax.jit
def _blurred(images: Images, sigma: Float[Array, " batch"]) -> Images:
    return jax.vmap(_blur)(images.astype(sigma.dtype), sigma).astype(images.dtype)


def _blur(image: Float[Array, "height width channels"], sigma: Float[Array, ""]) -> Float[Array, "..."]:
    """Of one image; differentiable in sigma, at 0 too, where it changes not a bit."""
    exact = jax.lax.Precision.HIGHEST
    rows, columns = (_spread(n, sigma) for n in image.shape[:2])
    image = image + jnp.einsum("hk,kwc->hwc", rows, image, precision=exact)
    return image + jnp.einsum("wk,hkc->hwc", columns, image, precision=exact)


def _spread(n: int, sigma: Float[Array, ""]) -> Float[Array, "n n"]:
    """exp(σ²/2 · Laplacian) - 1 of n pixels between mirrors, whose eigenvectors are cosines."""
    frequency = np.arange(n)[:, None]
    waves = np.cos(np.pi * frequency * (np.arange(n) + 0.5)[None] / n) * np.sqrt(np.where(frequency, 2, 1) / n)
    decay = jnp.expm1(-jnp.square(sigma) * np.asarray(1 - np.cos(np.pi * np.arange(n) / n), sigma.dtype))
    waves = jnp.asarray(waves, sigma.dtype)
    return jnp.matmul(waves.T * decay[None], waves, precision=jax.lax.Precision.HIGHEST)


def _at_node(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Images,
    target: Target,
    max_sigma: Float[Array, ""],
    node_and_weight: tuple[Float[Array, ""], Float[Array, ""]],
) -> Images:
    node, weight = node_and_weight
    wide = inputs.astype(max_sigma.dtype)
    at = lambda u: jax.vmap(_blur, in_axes=(0, None))(wide, max_sigma * u**2)
    image, sharpening = jax.jvp(at, (node,), (-jnp.ones_like(node),))
    return weight * sharpening * input_gradient(apply_fn, params, image.astype(inputs.dtype), target)


@jax.jit
def _finish(
    apply_fn: ApplyFn, params: Any, inputs: Images, target: Target, max_sigma: Float[Array, ""], total: Images
) -> PathAttribution:
    start = _blurred(inputs, jnp.broadcast_to(max_sigma, (len(inputs),)))
    before, after = (explained_output(apply_fn, params, end, target) for end in (start, inputs))
    return path_attribution(total, before, after, inputs.dtype)


def _check_images(images: Images) -> None:
    if jnp.ndim(images) != 4:
        raise UsageError(f"a blur needs images [batch, height, width, channels], got shape {list(jnp.shape(images))}")
