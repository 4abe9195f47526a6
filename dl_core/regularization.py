"""Against overfitting, beside the architecture: penalties, averaged weights, early stopping, noisy labels.

Weight decay is in dl_core/optim, label smoothing in dl_core/losses/classification.py, dropout with the models.
All of it is pure: a stopping rule or an average is a pytree that goes into the checkpoint with everything else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dl_core.errors import UsageError
from dl_core.optim.decay import Which, decay_mask
from dl_core.optim.options import Number, in_interval


def l1_penalty(params: PyTree, which: Which = "kernels") -> Float[Array, ""]:
    """‖w‖₁ = Σ|w|, the lasso (course notes, eq. 28).

    Args:
      params: pytree of parameters, any shapes.
      which: which of them, see `dl_core.optim.decay_mask`.

    Returns:
      A scalar >= 0, to be multiplied by a strength and added to the mean loss; float32 at least.

    Raises:
      UsageError: unknown `which`.
    """
    return _total(jnp.abs, params, which)


def l2_penalty(params: PyTree, which: Which = "kernels") -> Float[Array, ""]:
    """½ ‖w‖² = ½ Σ w², ridge; its gradient is w, so its strength is a coupled weight decay.

    (The course notes, eq. 29, leave the ½ out: their λ is half as large for the same effect.)

    Args:
      params: pytree of parameters, any shapes.
      which: which of them, see `dl_core.optim.decay_mask`.

    Returns:
      A scalar >= 0, to be multiplied by a strength and added to the mean loss; float32 at least.

    Raises:
      UsageError: unknown `which`.
    """
    return 0.5 * _total(jnp.square, params, which)


def _total(of: Callable[[Array], Array], params: PyTree, which: Which) -> Float[Array, ""]:
    leaves, keep = jax.tree.leaves(params), jax.tree.leaves(decay_mask(params, which))
    dtype = jnp.result_type(jnp.float32, *leaves)
    terms = (jnp.sum(of(leaf.astype(dtype))) for leaf, kept in zip(leaves, keep, strict=True) if kept)
    return sum(terms, jnp.zeros((), dtype))


def ema_update(average: PyTree, params: PyTree, decay: Number) -> PyTree:
    """Exponential moving average of the weights: average ← d · average + (1 - d) · params.

    Polyak, Juditsky (1992). Start from a copy of the first parameters. Keep the average in float32: in bfloat16 a decay
    of 0.999 never moves it.

    Args:
      average: pytree of the same structure and shapes as params.
      params: the current parameters; leaves that are not floats (counters) replace the average's.
      decay: d, in [0, 1]; 0.999 averages over about 1000 steps.

    Returns:
      The new average, with the dtypes of the old one.

    Raises:
      UsageError: decay out of its range.
    """
    in_interval("decay", decay, "[0, 1]")
    return _towards(average, params, 1 - decay)


def swa_update(average: PyTree, params: PyTree, count: Int[Array, ""] | int) -> PyTree:
    """Stochastic weight averaging: the plain mean of the parameters seen at the ends of several epochs.

    Izmailov et al. (2018), "Averaging Weights Leads to Wider Optima", https://arxiv.org/abs/1803.05407. BatchNorm's
    statistics belong to other weights and have to be computed anew.

    Args:
      average: mean of `count` pytrees; if count is 0, any with the right shapes, such as the parameters.
      params: the next one; leaves that are not floats (counters) replace the average's.
      count: how many are in the average already, >= 0.

    Returns:
      The mean of count + 1 pytrees, with the dtypes of the old one.
    """
    return _towards(average, params, 1 / (count + 1))


def _towards(average: PyTree, params: PyTree, share: Number) -> PyTree:
    def move(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        return (old + share * (new.astype(old.dtype) - old)).astype(old.dtype)

    return jax.tree.map(move, average, params)


class EarlyStopping(NamedTuple):
    """A rule that says when to stop: two pure functions, like an Optax transformation.

    init: () -> state. A NamedTuple of scalars, among them `stop`, which stays True once it is.
    update: (state, *, step, loss, validation_loss) -> state. Each rule reads the signals it needs and ignores the rest,
      so that all rules may be called alike; inside jit or on the host.
    """

    init: Callable[[], Any]
    update: Callable[..., Any]


class BudgetState(NamedTuple):
    """stop: whether the budget is spent."""

    stop: Bool[Array, ""]


class SmallUpdateState(NamedTuple):
    """stop; previous: the last loss; small: updates in a row that changed it too little."""

    stop: Bool[Array, ""]
    previous: Float[Array, ""]
    small: Int[Array, ""]


class ValidationState(NamedTuple):
    """stop; best: lowest validation loss so far; since_best: validations since then (0: this one is the best)."""

    stop: Bool[Array, ""]
    best: Float[Array, ""]
    since_best: Int[Array, ""]


class HybridState(NamedTuple):
    """stop: whether any rule says so; rules: their states."""

    stop: Bool[Array, ""]
    rules: tuple[Any, ...]


def budget(max_steps: int) -> EarlyStopping:
    """Stops after a preset number of steps (course notes, section 6.4, first form).

    Args:
      max_steps: stop as soon as `step` reaches it, >= 1.

    Returns:
      A rule that reads `step`: updates made so far.

    Raises:
      UsageError: max_steps out of its range.
    """
    in_interval("max_steps", max_steps, "[1, inf)", integer=True)

    def update(state: BudgetState, *, step: Int[Array, ""] | int, **_: Any) -> BudgetState:
        return BudgetState(state.stop | (step >= max_steps))

    return EarlyStopping(lambda: BudgetState(jnp.array(False)), update)


def small_update(min_change: float, *, patience: int = 1) -> EarlyStopping:
    """Stops when the training loss hardly changes any more, δ = |L_t - L_{t-1}| (course notes, sections 2.2 and 6.4).

    Args:
      min_change: a change below it counts as small, > 0.
      patience: small changes in a row that it takes, >= 1; more than 1 where the loss is a noisy mini-batch mean.

    Returns:
      A rule that reads `loss`: the training loss.

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("min_change", min_change, "(0, inf)")
    in_interval("patience", patience, "[1, inf)", integer=True)

    def init() -> SmallUpdateState:
        return SmallUpdateState(jnp.array(False), jnp.array(jnp.inf, jnp.float32), jnp.array(0, jnp.int32))

    def update(state: SmallUpdateState, *, loss: ArrayLike, **_: Any) -> SmallUpdateState:
        loss = jnp.asarray(loss, jnp.float32)
        small = jnp.where(jnp.abs(loss - state.previous) < min_change, state.small + 1, 0)
        return SmallUpdateState(state.stop | (small >= patience), loss, small)

    return EarlyStopping(init, update)


def validation(patience: int, *, min_delta: float = 0.0) -> EarlyStopping:
    """Stops when the validation loss has not improved for a while (course notes, section 6.4, third form).

    Prechelt (1998), "Early Stopping - But When?". NaN is no improvement.

    Args:
      patience: validations in a row without improvement that it takes, >= 1.
      min_delta: how far below the best a value must be to improve on it, >= 0.

    Returns:
      A rule that reads `validation_loss`, lower is better (negate an accuracy).

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("patience", patience, "[1, inf)", integer=True)
    in_interval("min_delta", min_delta, "[0, inf)")

    def init() -> ValidationState:
        return ValidationState(jnp.array(False), jnp.array(jnp.inf, jnp.float32), jnp.array(0, jnp.int32))

    def update(state: ValidationState, *, validation_loss: ArrayLike, **_: Any) -> ValidationState:
        value = jnp.asarray(validation_loss, jnp.float32)
        improved = value < state.best - min_delta
        since_best = jnp.where(improved, 0, state.since_best + 1)
        return ValidationState(
            state.stop | (since_best >= patience), jnp.where(improved, value, state.best), since_best
        )

    return EarlyStopping(init, update)


def hybrid(*rules: EarlyStopping) -> EarlyStopping:
    """Stops when any of several rules does (course notes, section 6.4, last sentence).

    Args:
      *rules: at least one.

    Returns:
      A rule that reads what they read.

    Raises:
      UsageError: no rule given.
    """
    if not rules:
        raise UsageError("hybrid needs at least one stopping rule, e.g. hybrid(budget(10_000), validation(5))")

    def join(states: tuple[Any, ...]) -> HybridState:
        return HybridState(jnp.stack([state.stop for state in states]).any(), states)

    def update(state: HybridState, **signals: Any) -> HybridState:
        return join(tuple(rule.update(old, **signals) for rule, old in zip(rules, state.rules, strict=True)))

    return EarlyStopping(lambda: join(tuple(rule.init() for rule in rules)), update)


def label_noise(
    key: Key[Array, "..."], labels: Int[Array, " batch"], rate: Number, num_classes: int
) -> Int[Array, " batch"]:
    """Symmetric label noise: each label becomes another class, all others being equally likely, with some probability.

    Angluin, Laird (1988). The class is always a different one, so that `rate` is the expected share of wrong labels;
    (num_classes - 1) / num_classes leaves no information about the class.

    Args:
      key: one random key, or one for each label (then a label's fate does not depend on how a batch is divided).
      labels: classes, in [0, num_classes).
      rate: probability of a change, in [0, 1].
      num_classes: >= 2.

    Returns:
      Labels of the same shape and dtype.

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("rate", rate, "[0, 1]")
    in_interval("num_classes", num_classes, "[2, inf)", integer=True)

    def disturb(one_key: Key[Array, ""], label: Int[Array, ""]) -> Int[Array, ""]:
        decide, draw = jax.random.split(one_key)
        shift = jax.random.randint(draw, (), 1, num_classes, labels.dtype)
        return jnp.where(jax.random.bernoulli(decide, rate), (label + shift) % num_classes, label)

    return jax.vmap(disturb)(key if key.ndim else jax.random.split(key, labels.shape[0]), labels)
