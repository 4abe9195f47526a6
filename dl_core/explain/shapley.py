"""Shapley values: exactly, from all coalitions, and from sampled permutations.

Shapley (1953), "A Value for n-Person Games"; Castro, Gómez, Tejada (2009), "Polynomial calculation of the Shapley
value based on sampling", https://doi.org/10.1016/j.cor.2008.04.004 (permutations); Mitchell, Cooper, Frank, Holmes
(2022), "Sampling Permutations for Shapley Value Estimation", https://arxiv.org/abs/2104.12199 (antithetic pairs).

    φ_i = Σ_{S ∌ i} |S|! (n - |S| - 1)! / n! · (v(S ∪ i) - v(S))

`players.py` says who the players are and what v is. The values add up to v(all) - v(none) (efficiency), are equal for
players that contribute alike (symmetry), zero for those that contribute nothing (dummy), and linear in the game.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.explain.pieces import Progress
from dl_core.explain.players import (
    Baselines,
    FeatureMask,
    Game,
    ShapleyValues,
    blocks,
    divided,
    payoff,
    payoffs,
    set_up,
)
from dl_core.explain.target import ApplyFn, Target
from dl_core.loops import scan

MOST_PLAYERS = 16  # 65 536 coalitions


def shapley_exact(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    target: Target,
    *,
    feature_mask: FeatureMask = None,
    baselines: Baselines = 0.0,
    n_players: int | None = None,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> ShapleyValues:
    """Shapley values from all 2ⁿ coalitions of at most 16 players.

    Each coalition is evaluated once: what it is worth counts with the weight (|S|-1)! (n-|S|)! / n! for its members,
    and with -|S|! (n-|S|-1)! / n! for the others.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      feature_mask: the player of every value, e.g. `patches((28, 28), 7)`; see `dl_core.explain.players`.
      baselines: what absent values are replaced by, or a background set; see `dl_core.explain.players`.
      n_players: for masks made inside of `jit` or `vmap`: how many players there are.
      internal_batch_size: most rows (examples × coalitions) that apply_fn is given at once; None bounds the number of
        values instead. The result is the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      ShapleyValues, with standard errors of zero.

    Raises:
      UsageError: more than 16 players; see `set_up` for the other arguments.
    """
    game, n = set_up(apply_fn, params, inputs, target, feature_mask, baselines, n_players)
    if n > MOST_PLAYERS:
        raise UsageError(
            f"shapley_exact evaluates 2ⁿ coalitions and takes at most {MOST_PLAYERS} players, got {n}; make them fewer "
            "with feature_mask=patches(…), or estimate with shapley_sampling or kernel_shap"
        )
    zeros = jnp.zeros((len(game.inputs), n), jnp.promote_types(game.inputs.dtype, jnp.float32))
    step = Partial(_add_block, Partial(apply_fn), game, _coalition_weights(n))
    values, _ = scan(step, zeros, blocks(game, 2**n, internal_batch_size), loop=loop, progress=progress)
    return divided(game, values, jnp.zeros_like(values))


def shapley_sampling(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    target: Target,
    *,
    key: PRNGKeyArray,
    feature_mask: FeatureMask = None,
    baselines: Baselines = 0.0,
    n_samples: int = 25,
    antithetic: bool = True,
    n_players: int | None = None,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> ShapleyValues:
    """Shapley values estimated without bias from random permutations: the players enter one after another.

    The mean over the permutations of what each player adds when it enters. The values of every permutation add up to
    v(all) - v(none), so the estimates do. Antithetic: each permutation is also walked backwards, which is exact for
    games whose players interact in pairs at most. A walk takes n - 1 evaluations of each example (the worth of all and
    of none is shared), antithetic twice that; the same permutations serve all examples. One number is kept for each.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      key: of the permutations. The same ones come for any internal_batch_size.
      feature_mask: the player of every value, e.g. `patches((28, 28), 4)`; see `dl_core.explain.players`.
      baselines: what absent values are replaced by, or a background set; see `dl_core.explain.players`.
      n_samples: independent permutations, >= 2. The standard errors fall as 1 / √n_samples.
      antithetic: walk each permutation backwards too.
      n_players: for masks made inside of `jit` or `vmap`: how many players there are.
      internal_batch_size: most rows (examples × coalitions) that apply_fn is given at once; None bounds the number of
        values instead. The result is the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      ShapleyValues. The standard errors are those of the mean of n_samples independent terms: permutations, or
      averages of a permutation and its reverse.

    Raises:
      UsageError: n_samples below 2; see `set_up` for the other arguments.
    """
    if n_samples < 2:
        raise UsageError(f"n_samples must be at least 2 permutations, for standard errors; got {n_samples}")
    game, n = set_up(apply_fn, params, inputs, target, feature_mask, baselines, n_players)
    places = _places(key, n, n_samples, antithetic)
    worth = payoffs(
        Partial(apply_fn),
        game,
        Partial(_prefix, places),
        2 + len(places) * (n - 1),
        internal_batch_size=internal_batch_size,
        loop=loop,
        progress=progress,
    )
    return divided(game, *_mean_contributions(worth, places, n_samples))


def _coalition_weights(n: int) -> Float[np.ndarray, " n"]:
    """s! (n - s - 1)! / n! for s = 0 … n - 1: how much it counts that a player joins s others."""
    return np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)], np.float32)


def _add_block(
    apply_fn: ApplyFn,
    game: Game,
    weights: Float[Array, " players"],
    values: Float[Array, "batch players"],
    pairs: Int[Array, " pairs"],
) -> tuple[Float[Array, "batch players"], None]:
    """Adds what the coalitions of one block contribute to the value of every player."""
    backgrounds, n = len(game.baselines), len(weights)
    coalition_of = Partial(_members, jnp.arange(n))
    members = jax.vmap(coalition_of)(pairs // backgrounds)
    size = members.sum(axis=1, keepdims=True)  # of all and of none, the weight beyond the table's end is not used
    share = jnp.where(members, weights[size - 1], -weights[size]) / backgrounds
    share = jnp.where((pairs < 2**n * backgrounds)[:, None], share, 0).astype(values.dtype)
    worth = payoff(apply_fn, game, coalition_of, pairs)
    return values + jnp.matmul(worth.T, share, precision="highest"), None


def _members(bits: Int[Array, " players"], number: Int[Array, ""]) -> Bool[Array, " players"]:
    """The coalition whose members are the bits of a number."""
    return (number >> bits) & 1 == 1


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _places(key: PRNGKeyArray, n: int, n_samples: int, antithetic: bool) -> Int[Array, "walks players"]:
    """When each player enters, in every walk; a walk and its reverse are neighbours."""
    places = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(key, n_samples))
    return jnp.stack([places, n - 1 - places], axis=1).reshape(-1, n) if antithetic else places


def _prefix(places: Int[Array, "walks players"], index: Int[Array, ""]) -> Bool[Array, " players"]:
    """None, all, then the first 1 … n - 1 players of each walk."""
    n = places.shape[1]
    walk, entered = jnp.divmod(index - 2, max(n - 1, 1))
    entered = jnp.where(index < 2, index * n, entered + 1)
    return places[walk] < entered


@functools.partial(jax.jit, static_argnums=2)
def _mean_contributions(
    worth: Float[Array, "coalitions batch"], places: Int[Array, "walks players"], n_samples: int
) -> tuple[Float[Array, "batch players"], Float[Array, "batch players"]]:
    walks, n = places.shape
    ends = jnp.broadcast_to(worth[:2, None, None], (2, walks, 1, worth.shape[1]))
    along = jnp.concatenate([ends[0], worth[2:].reshape(walks, n - 1, -1), ends[1]], axis=1)
    contributions = jnp.take_along_axis(jnp.diff(along, axis=1), places[:, :, None], axis=1)
    terms = contributions.reshape(n_samples, -1, n, worth.shape[1]).mean(axis=1)
    return terms.mean(axis=0).T, terms.std(axis=0, ddof=1).T / math.sqrt(n_samples)
