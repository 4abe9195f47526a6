"""Relevance inside the object: as a share of all relevance, and among the most relevant pixels.

Arras, Osman, Samek (2022), "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
Explanations", https://arxiv.org/abs/2003.07258, section 3.3.

    mass accuracy = Σ_{p in the object} R_p / Σ_p R_p
    rank accuracy = |{the K most relevant pixels} ∩ object| / K,   K = pixels of the object

Both are the object's share of the area (`area_share`) for relevance that knows nothing of it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dl_core.errors import unknown_name
from dl_core.explain.evaluate.masks import Maps, Masks, check_masks, sum_of_channels

RELEVANCES = ("positive", "absolute", "signed")


def relevance_mass_accuracy(attributions: Maps, masks: Masks, *, relevance: str = "positive") -> Float[Array, " batch"]:
    """Share of the relevance that lies inside the object.

    Args:
      attributions: [batch, height, width, channels], summed over the channels, or a map [batch, height, width].
      masks: [batch, height, width], True inside the object.
      relevance: what of the sum over the channels counts: its "positive" part, its "absolute" value, or itself
        ("signed": the share may then be of any sign and size).

    Returns:
      One share for each example, in [0, 1] unless signed; nan where there is no relevance at all.

    Raises:
      UsageError: shapes that do not fit, masks that are no booleans or empty, an unknown relevance.
    """
    relevances = _relevance(attributions, relevance)
    return _mass(relevances, check_masks(masks, *relevances.shape))


def relevance_rank_accuracy(attributions: Maps, masks: Masks, *, relevance: str = "signed") -> Float[Array, " batch"]:
    """Share of the K most relevant pixels that lie inside the object of K pixels.

    Where the K-th place is shared by equal pixels, their part in it is what a random choice among them scores.

    Args:
      attributions, masks: as in `relevance_mass_accuracy`.
      relevance: what of the sum over the channels is ranked: "signed" (the most positive first), "positive",
        "absolute".

    Returns:
      One share in [0, 1] for each example.

    Raises:
      UsageError: see `relevance_mass_accuracy`.
    """
    relevances = _relevance(attributions, relevance)
    return _rank(relevances, check_masks(masks, *relevances.shape))


def _relevance(attributions: Maps, relevance: str) -> Float[Array, "batch height width"]:
    if relevance not in RELEVANCES:
        raise unknown_name("relevance", relevance, RELEVANCES)
    maps = sum_of_channels(attributions)
    return {"positive": jax.nn.relu, "absolute": jnp.abs, "signed": lambda maps: maps}[relevance](maps)


@jax.jit
def _mass(maps: Float[Array, "batch height width"], masks: Bool[Array, "batch height width"]) -> Float[Array, " batch"]:
    return jnp.where(masks, maps, 0).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


@jax.jit
def _rank(maps: Float[Array, "batch height width"], masks: Bool[Array, "batch height width"]) -> Float[Array, " batch"]:
    maps, masks = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
    size = masks.sum(axis=1, keepdims=True)
    falling = -jnp.sort(-maps, axis=1)
    last = jnp.take_along_axis(falling, size - 1, axis=1)  # the K-th largest
    above, level = maps > last, maps == last
    count = lambda pixels: pixels.sum(axis=1, keepdims=True)
    expected = (size - count(above)) / count(level) * count(masks & level)
    return ((count(masks & above) + expected) / size)[:, 0]
