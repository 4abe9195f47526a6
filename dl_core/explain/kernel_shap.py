"""Kernel SHAP: Shapley values as the weighted least-squares fit of an additive game to sampled coalitions.

Lundberg, Lee (2017), "A Unified Approach to Interpreting Model Predictions", https://arxiv.org/abs/1705.07874, theorem
2 (the kernel); Covert, Lee (2021), "Improving KernelSHAP: Practical Shapley Value Estimation via Linear Regression",
https://arxiv.org/abs/2012.01536 (the constraint eliminated; a coalition together with its complement).

    min_φ Σ_S μ(S) (v(S) - v(none) - Σ_{i∈S} φ_i)²   with Σ_i φ_i = v(all) - v(none),  1 / μ(S) ∝ C(n,|S|) |S| (n-|S|)

With φ_i = (v(all) - v(none)) / n + ψ_i the constraint says Σ ψ = 0, so only u = 1_S - |S|/n matters of a coalition. Its
complement has -u, so that a pair is one row of the regression, whose left side is half of the difference

    d = v(S) - v(complement) - (2|S|/n - 1) (v(all) - v(none))

and v(none) cancels: what float32 is left with are numbers of the size of the values themselves. With all coalitions the
normal matrix is c (I - 11ᵀ/n) with a known c; c 11ᵀ/n fills in the missing direction, and a ridge of 1e-6 c is added,
which moves the values by 1e-6 of their size and keeps an unlucky draw from dividing by zero.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dl_core.errors import UsageError
from dl_core.explain.pieces import Progress
from dl_core.explain.players import Baselines, FeatureMask, ShapleyValues, divided, payoffs, set_up
from dl_core.explain.target import ApplyFn, Target

_RIDGE = 1e-6


class _Design(NamedTuple):
    """Which coalitions are evaluated, one of each pair.

    listed: those that always are, and what each counts.
    sizes: of the sampled ones the possible sizes, with their probabilities.
    drawn: how many are sampled; each counts `drawn_weight`. All weights sum to 1.
    """

    listed: Bool[np.ndarray, "listed players"]
    listed_weights: Float[np.ndarray, " listed"]
    sizes: Int[np.ndarray, " sizes"]
    probabilities: Float[np.ndarray, " sizes"]
    drawn: int
    drawn_weight: float


def kernel_shap(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array | np.ndarray, "batch ..."],
    target: Target,
    *,
    key: PRNGKeyArray,
    feature_mask: FeatureMask = None,
    baselines: Baselines = 0.0,
    n_samples: int | None = None,
    n_players: int | None = None,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> ShapleyValues:
    """Shapley values by regression on coalitions, each together with its complement.

    The sizes 1 and n - 1, 2 and n - 2, … are evaluated completely for as long as n_samples allows: while a size's share
    of the kernel would draw at least as many as there are (the rule of the package shap); the rest is sampled from the
    kernel. With all 2ⁿ - 2 coalitions the values are exact. They always add up to v(all) - v(none). The same coalitions
    serve all examples.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference. It need not be differentiable.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      key: of the sampled coalitions. The same ones come for any internal_batch_size.
      feature_mask: the player of every value, e.g. `patches((28, 28), 4)`; see `dl_core.explain.players`.
      baselines: what absent values are replaced by, or a background set; see `dl_core.explain.players`.
      n_samples: coalitions that are evaluated for each example besides all and none, at least 4 n (or all 2ⁿ - 2); an
        odd number is rounded down. None means 2 n + 2048, or all where these are fewer.
      n_players: for masks made inside of `jit` or `vmap`: how many players there are.
      internal_batch_size: most rows (examples × coalitions) that apply_fn is given at once; None bounds the number of
        values instead. The result is the same for any.
      loop: how the pieces are driven; see `dl_core.loops`.
      progress: called with (pieces done, pieces in all); not inside `jit`.

    Returns:
      ShapleyValues. The standard errors are a jackknife over the sampled pairs: each is left out in turn, to first
      order with the leverage of the pair (HC3). They are zero where every coalition was evaluated.

    Raises:
      UsageError: n_samples below 4 n and below 2ⁿ - 2; see `set_up` for the other arguments.
    """
    game, n = set_up(apply_fn, params, inputs, target, feature_mask, baselines, n_players)
    every = 2**n - 2
    n_samples = min(2 * n + 2048, every) if n_samples is None else n_samples
    if n_samples < min(4 * n, every):
        raise UsageError(
            f"n_samples must be at least {min(4 * n, every)} for {n} players (4 n, or all 2ⁿ - 2 coalitions), for the "
            f"regression to be determined; got {n_samples}"
        )
    design = _design(n, n_samples)
    coalitions = _coalitions(key, design.listed, design.sizes, design.probabilities, design.drawn)
    worth = payoffs(
        Partial(apply_fn),
        game,
        Partial(_row, coalitions),
        2 + 2 * len(coalitions),
        internal_batch_size=internal_batch_size,
        loop=loop,
        progress=progress,
    )
    return divided(game, *_regression(worth, coalitions, design.listed_weights, design.drawn_weight))


@functools.lru_cache(maxsize=32)
def _design(n: int, n_samples: int) -> _Design:
    left = pairs = min(n_samples, 2**n - 2) // 2
    sizes = np.arange(1, n // 2 + 1)
    is_half = 2 * sizes == n  # the complement is of the same size: half as many pairs, half of the kernel
    mass = 1 / (sizes * (n - sizes)) * np.where(is_half, 0.5, 1)
    mass /= mass.sum() if n > 1 else 1
    counts = [math.comb(n, int(size)) // (2 if half else 1) for size, half in zip(sizes, is_half, strict=True)]
    complete = 0
    while complete < len(sizes) and left * mass[complete] / mass[complete:].sum() > counts[complete] - 1e-6:
        left -= counts[complete]
        complete += 1
    listed = np.zeros((pairs - left, n), bool)
    members = itertools.chain.from_iterable(
        itertools.islice(itertools.combinations(range(n), int(size)), count)  # the first half contains player 0
        for size, count in zip(sizes[:complete], counts, strict=False)
    )
    for row, coalition in enumerate(members):
        listed[row, list(coalition)] = True
    rest = mass[complete:].sum()
    return _Design(
        listed,
        np.repeat(mass[:complete] / counts[:complete], counts[:complete]).astype(np.float32),
        sizes[complete:].astype(np.int32),
        (mass[complete:] / rest if rest else mass[complete:]).astype(np.float32),
        left,
        float(rest / left) if left else 0.0,
    )


@functools.partial(jax.jit, static_argnames="drawn")
def _coalitions(
    key: PRNGKeyArray,
    listed: Bool[Array, "listed players"],
    sizes: Int[Array, " sizes"],
    probabilities: Float[Array, " sizes"],
    drawn: int,
) -> Bool[Array, "pairs players"]:
    if not drawn:
        return listed
    keys = jax.random.split(key)
    size = jax.random.choice(keys[0], sizes, (drawn,), p=probabilities)
    places = jax.vmap(lambda k: jax.random.permutation(k, listed.shape[1]))(jax.random.split(keys[1], drawn))
    return jnp.concatenate([listed, places < size[:, None]])


def _row(coalitions: Bool[Array, "pairs players"], index: Int[Array, ""]) -> Bool[Array, " players"]:
    """None, all, then each coalition followed by its complement."""
    if not len(coalitions):
        return jnp.full(coalitions.shape[1], index == 1)
    pair, is_complement = jnp.divmod(index - 2, 2)
    return jnp.where(index < 2, index == 1, coalitions[pair] ^ (is_complement == 1))


@jax.jit
@jax.default_matmul_precision("highest")
def _regression(
    worth: Float[Array, "coalitions batch"],
    coalitions: Bool[Array, "pairs players"],
    listed_weights: Float[Array, " listed"],
    drawn_weight: Float[Array, ""],
) -> tuple[Float[Array, "batch players"], Float[Array, "batch players"]]:
    pairs, n = coalitions.shape
    drawn = pairs - len(listed_weights)
    change = worth[1] - worth[0]
    if not pairs:  # one player has it all
        return change[:, None], jnp.zeros_like(change)[:, None]
    share = coalitions.mean(axis=1, dtype=worth.dtype)
    u = coalitions - share[:, None]
    rows = worth[2:].reshape(pairs, 2, -1)
    half = (rows[:, 0] - rows[:, 1] - (2 * share - 1)[:, None] * change[None]) / 2
    weights = jnp.concatenate([listed_weights, jnp.full(drawn, drawn_weight)]).astype(worth.dtype)

    size = np.arange(1, n)
    full = 1 / (n * (1 / (size * (n - size))).sum())  # the normal matrix's c over all coalitions
    weighted = weights[:, None] * u
    normal = u.T @ weighted + full * (jnp.ones((n, n)) / n + _RIDGE * jnp.eye(n)).astype(u.dtype)
    factor = jax.scipy.linalg.cho_factor(normal)
    psi = jax.scipy.linalg.cho_solve(factor, weighted.T @ half)
    psi -= psi.mean(axis=0, keepdims=True)
    values = (change[None] / n + psi).T
    if not drawn:
        return values, jnp.zeros_like(values)

    influence = jax.scipy.linalg.cho_solve(factor, weighted[-drawn:].T).T  # of the left side of a row on ψ
    leverage = (influence * u[-drawn:]).sum(axis=1)
    moves = (half - u @ psi)[-drawn:] / jnp.sqrt(jnp.maximum(1 - leverage, 1e-3))[:, None]
    mean = influence.T @ moves / drawn
    variance = (influence**2).T @ moves**2 / drawn - mean**2
    return values, jnp.sqrt(jnp.maximum(variance, 0) * drawn**2 / (drawn - 1)).T
