"""Affine models, whose boundaries are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

DUAL = {"l2": 2, "linf": 1}


def affine(params, images):
    """Logits [batch, classes], with a bias or without."""
    return images.reshape(len(images), -1) @ params["w"] + params.get("b", jnp.zeros(params["w"].shape[1]))[None]


def four_classes():
    """Images near the middle of the bounds, which are then never met, and the classes that are predicted."""
    keys = jax.random.split(jax.random.key(1), 2)
    params = {"w": jax.random.normal(keys[0], (18, 4))}
    images = jax.random.uniform(keys[1], (8, 3, 3, 2), minval=0.45, maxval=0.55)
    return params, images, affine(params, images).argmax(axis=1).astype(jnp.int32)


def boundary_distances(params, images, labels, norm="l2"):
    """|f_k − f_y| / ‖w_k − w_y‖ in the dual norm, float64 [batch, classes]; infinite for the label itself."""
    weights, logits = np.asarray(params["w"], np.float64), np.asarray(affine(params, images), np.float64)
    rows = np.arange(len(labels))
    gaps = np.abs(logits - logits[rows, labels][:, None])
    lengths = np.linalg.norm(weights.T[None] - weights.T[np.asarray(labels)][:, None], ord=DUAL[norm], axis=2)
    gaps[rows, labels], lengths[rows, labels] = np.inf, 1
    return gaps / lengths
