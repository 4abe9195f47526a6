"""Learning rates as functions of the step, and the one that depends on the validation loss.

A schedule maps the number of updates made so far (0 at the first) to a learning rate; it is an Optax schedule and works
on ints, arrays and traced values.

    step         η0 c^⌊t/K⌋            course notes, eq. 19
    exponential  η0 c^(t/K)
    polynomial   η0 / t^α              course notes, eq. 20; η0 at t = 0
    linear       η0 (1 - (1 - e) t/T)
    cosine       η0 (e + (1 - e) (1 + cos(π t/T)) / 2)    Loshchilov, Hutter (2017), https://arxiv.org/abs/1608.03983
    constant     η0
    plateau      η0, to be multiplied by the scale of `reduce_on_plateau`

A warm-up climbs linearly from 0 to η0 in front of any of them; t counts from its end, and T ends with the run.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from dl_core.errors import UsageError
from dl_core.optim.options import Number, checked_options, in_interval


def step_decay(learning_rate: Number, *, factor: Number = 0.1, every: int) -> optax.Schedule:
    """η0 c^⌊t/K⌋: the rate falls by a factor after every K steps (course notes, eq. 19).

    Args:
      learning_rate: η0, >= 0.
      factor: c, in (0, 1].
      every: K, steps between reductions, >= 1.

    Returns:
      A schedule: step count -> learning rate (same shape as the count).

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("learning_rate", learning_rate, "[0, inf)")
    in_interval("factor", factor, "(0, 1]")
    in_interval("every", every, "[1, inf)", integer=True)
    return lambda count: learning_rate * factor ** (jnp.asarray(count) // every)


def inverse_power_decay(learning_rate: Number, *, power: Number = 0.5) -> optax.Schedule:
    """η0 / t^α, polynomial decay (course notes, eq. 20).

    The formula has no value at t = 0; here it is η0, as at t = 1.

    Args:
      learning_rate: η0, >= 0.
      power: α, > 0. Robbins and Monro's conditions for convergence ask for (1/2, 1].

    Returns:
      A schedule: step count -> learning rate (same shape as the count).

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("learning_rate", learning_rate, "[0, inf)")
    in_interval("power", power, "(0, inf)")
    return lambda count: learning_rate / jnp.maximum(count, 1) ** power


def warm_up(after: optax.Schedule, learning_rate: Number, *, warmup_steps: int) -> optax.Schedule:
    """Climbs linearly from 0 at step 0 to learning_rate at step warmup_steps, then goes on with another schedule.

    Goyal et al. (2017), "Accurate, Large Minibatch SGD", https://arxiv.org/abs/1706.02677, section 2.2.

    Args:
      after: the schedule to go on with; its step 0 is step warmup_steps of the whole.
      learning_rate: top of the climb, >= 0; normally after(0).
      warmup_steps: length of the climb, >= 0.

    Returns:
      A schedule: step count -> learning rate (same shape as the count).

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("learning_rate", learning_rate, "[0, inf)")
    in_interval("warmup_steps", warmup_steps, "[0, inf)", integer=True)
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), after], [warmup_steps])


def reduce_on_plateau(
    *,
    factor: float = 0.1,
    patience: int = 10,
    cooldown: int = 0,
    min_scale: float = 0.0,
    rtol: float = 1e-4,
    atol: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Lowers the learning rate when the validation loss stops falling (Optax's `contrib.reduce_on_plateau`).

    It is kept beside the optimiser, because it moves once per validation and not once per step:

        plateau = reduce_on_plateau(factor=0.5, patience=3)
        plateau_state = plateau.init(params)                                    # part of the training state
        updates = jax.tree.map(lambda u: plateau_state.scale * u, updates)      # in every train step
        _, plateau_state = plateau.update({}, plateau_state, value=validation_loss)     # after every validation

    A value improves when it is below (1 - rtol) * best - atol; for values that may be negative set rtol=0 and an atol.
    A value that is NaN never improves. PyTorch's ReduceLROnPlateau waits one validation longer for the same patience.

    Args:
      factor: what the scale is multiplied by, in (0, 1).
      patience: validations in a row without improvement before the scale falls, >= 1.
      cooldown: validations after a fall during which none are counted, >= 0.
      min_scale: the scale never falls below it, in [0, 1].
      rtol: relative improvement that counts, in [0, 1].
      atol: absolute improvement that counts, >= 0.

    Returns:
      A transformation whose state (scalars, float32 whatever the parameters are) has the field `scale`.

    Raises:
      UsageError: a value out of its range.
    """
    in_interval("factor", factor, "(0, 1)")
    in_interval("patience", patience, "[1, inf)", integer=True)
    in_interval("cooldown", cooldown, "[0, inf)", integer=True)
    in_interval("min_scale", min_scale, "[0, 1]")
    in_interval("rtol", rtol, "[0, 1]")
    in_interval("atol", atol, "[0, inf)")
    if rtol == 0 and atol == 0:
        raise UsageError("rtol and atol are both 0; one of them must be positive")
    inner = optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience, rtol=rtol, atol=atol, cooldown=cooldown, min_scale=min_scale
    )

    def init(params: Any) -> Any:
        del params  # Optax takes the dtype of the scale from them; bfloat16 cannot hold 0.1 ** n
        return inner.init(jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, **signals: Any) -> Any:
        return inner.update(updates, state, params, **signals)

    return optax.GradientTransformationExtraArgs(init, update)


def _constant(learning_rate: Number, decay_steps: int) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


def _step(learning_rate: Number, decay_steps: int, *, factor: Number = 0.1, every: int | None = None) -> optax.Schedule:
    return step_decay(learning_rate, factor=factor, every=max(decay_steps // 3, 1) if every is None else every)


def _polynomial(learning_rate: Number, decay_steps: int, *, power: Number = 0.5) -> optax.Schedule:
    return inverse_power_decay(learning_rate, power=power)


def _linear(learning_rate: Number, decay_steps: int, *, end_factor: Number = 0.0) -> optax.Schedule:
    in_interval("end_factor", end_factor, "[0, 1]")
    # clipped after the division: compiled, T/T may round to 1 + 1e-7, and Optax's linear_schedule then ends below 0
    return lambda count: learning_rate * (1 - (1 - end_factor) * jnp.clip(count / decay_steps, 0.0, 1.0))


def _exponential(
    learning_rate: Number, decay_steps: int, *, factor: Number = 0.01, every: int | None = None
) -> optax.Schedule:
    every = decay_steps if every is None else every
    in_interval("factor", factor, "(0, 1]")
    in_interval("every", every, "[1, inf)", integer=True)
    return lambda count: learning_rate * factor ** (count / every)


def _cosine(learning_rate: Number, decay_steps: int, *, end_factor: Number = 0.0) -> optax.Schedule:
    in_interval("end_factor", end_factor, "[0, 1]")
    return optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=end_factor)


def _plateau(
    learning_rate: Number,
    decay_steps: int,
    *,
    factor: float = 0.1,
    patience: int = 10,
    cooldown: int = 0,
    min_scale: float = 0.0,
    rtol: float = 1e-4,
    atol: float = 0.0,
) -> optax.Schedule:
    reduce_on_plateau(
        factor=factor, patience=patience, cooldown=cooldown, min_scale=min_scale, rtol=rtol, atol=atol
    )  # for its checks
    return optax.constant_schedule(learning_rate)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "step": _step,
    "polynomial": _polynomial,
    "linear": _linear,
    "exponential": _exponential,
    "cosine": _cosine,
    "plateau": _plateau,
}


def schedule(
    name: str, *, learning_rate: Number, total_steps: int, warmup_steps: int = 0, **options: Any
) -> optax.Schedule:
    """The learning-rate schedule of that name, with a linear warm-up in front of it.

    Options, by name (None leaves the default):
      constant: none.
      step: factor c (0.1), every K (a third of the steps after the warm-up).
      polynomial: power α (0.5).
      linear, cosine: end_factor, the last rate as a fraction of the first (0).
      exponential: factor c (0.01), every K (all steps after the warm-up).
      plateau: those of `reduce_on_plateau`, which are checked here and take effect there; the schedule is constant.

    Args:
      name: one of the above.
      learning_rate: η0, the rate after the warm-up, >= 0.
      total_steps: updates in the run, >= 1.
      warmup_steps: updates during which the rate climbs from 0, in [0, total_steps].
      **options: as above.

    Returns:
      An Optax schedule: step count -> learning rate (same shape as the count).

    Raises:
      UsageError: unknown name, an option that this schedule lacks, or a value out of its range.
    """
    given = checked_options("schedule", name, SCHEDULES, options, ("learning_rate", "total_steps", "warmup_steps"))
    in_interval("learning_rate", learning_rate, "[0, inf)")
    in_interval("total_steps", total_steps, "[1, inf)", integer=True)
    in_interval("warmup_steps", warmup_steps, f"[0, {total_steps}]", integer=True)
    after = SCHEDULES[name](learning_rate, max(total_steps - warmup_steps, 1), **given)
    return warm_up(after, learning_rate, warmup_steps=warmup_steps)
