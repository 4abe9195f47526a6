"""Robust accuracy that can be trusted: several attacks of different kinds, each on the survivors of the one before.

Croce, Hein (2020), "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
https://arxiv.org/abs/2003.01690: two gradient attacks that choose their own step size (on the cross-entropy, and on the
difference of logits ratio towards each of the likeliest classes), one that looks for the nearest boundary, and one that
never asks for a gradient. An image counts as robust if none of them breaks it. The result is an upper bound of the true
robust accuracy: another attack may break more. Whether gradients can be believed at all is for
`dl_core.attacks.check_gradient_masking`.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.apgd import apgd
from dl_core.attacks.balls import image_keys
from dl_core.attacks.checks import Problem, check_at_least, check_logits
from dl_core.attacks.fab import fab
from dl_core.attacks.objectives import margin
from dl_core.attacks.pieces import in_pieces, take, traced
from dl_core.attacks.result import ApplyFn, choose
from dl_core.attacks.square import square
from dl_core.attacks.verification import Attack, Attacked, attack_once, check_evaluated
from dl_core.errors import UsageError, unknown_name
from dl_core.metrics.intervals import check_confidence, wilson_interval

STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")
NAMED = ("apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square")
Attacks = Sequence[str | tuple[str, Attack]] | Mapping[str, Attack]


@jax.tree_util.register_static
class Names(tuple[str, ...]):
    """Names in a result that may come out of a compiled function: no arrays, no shapes."""


class AttackTable(NamedTuple):
    """What each attack of an ensemble added, in their order.

    names: of the attacks.
    accuracy: what was left after each.
    broken: how many images each was the first to break.
    queries: forward passes and gradients, of all images together.
    seconds: with compilation; nan inside `jit`.
    """

    names: Names
    accuracy: Float[Array | np.ndarray, " attacks"]
    broken: Int[Array | np.ndarray, " attacks"]
    queries: Int[Array | np.ndarray, " attacks"]
    seconds: Float[Array | np.ndarray, " attacks"]


class RobustAccuracy(NamedTuple):
    """Accuracy under the worst of several attacks.

    accuracy: share of the images that are classified correctly and that no attack broke.
    low, high: its Wilson interval.
    clean_accuracy: without an attack.
    table: what each attack added.
    adversarial: for each image the example that broke it; of a robust image the attempt with the smallest margin left;
      of an image that was wrong from the start, the image.
    robust: correct, and unbroken.
    fooled_by: index of the attack that broke the image, -1 where none did.
    queries: of all attacks on each image.
    """

    accuracy: Float[Array, ""] | float
    low: Float[Array, ""] | float
    high: Float[Array, ""] | float
    clean_accuracy: Float[Array, ""] | float
    table: AttackTable
    adversarial: Float[Array, "batch ..."]
    robust: Bool[Array, " batch"]
    fooled_by: Int[Array, " batch"]
    queries: Int[Array, " batch"]


class _Worst(NamedTuple):
    """What the attacks have found so far."""

    adversarial: Float[Array, "batch ..."]
    margin: Float[Array, " batch"]
    robust: Bool[Array, " batch"]
    fooled_by: Int[Array, " batch"]
    queries: Int[Array, " batch"]


def robust_accuracy(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    eps: float | Float[Array, ""] | Float[Array, " batch"],
    norm: str = "linf",
    attacks: Attacks = STANDARD,
    steps: int = 100,
    max_queries: int = 5000,
    num_targets: int = 9,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int | None = None,
    confidence: float = 0.95,
    loop: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> RobustAccuracy:
    """Accuracy under an ensemble of attacks, each on the images that the ones before did not break.

    Outside of `jit` the survivors are gathered into smaller batches. Inside, every attack is given all images, those
    broken already as their adversarial examples, where there is nothing left to do. Both give the same result: an
    image's random numbers depend on its place in `images` alone. Every attack's result is checked by asking the model
    again (`verification.attack_once`).

    The standard attacks in models of few classes: there are never more targets than other classes; the difference of
    logits ratio compares four logits (three without a target), so with fewer classes the margin is raised instead.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds.
      labels: the true classes.
      key: one key, or one for each image.
      eps: radius of the ball in the units of the images, >= 0; one number, or one for each image.
      norm: "linf", "l2" or "l1".
      attacks: names of NAMED, or pairs of a name and a function (apply_fn, params, images, labels, *, key, eps, norm,
        bounds, loop) -> AttackResult (other options by `functools.partial`), or a mapping from name to function.
      steps: of each gradient attack, >= 1.
      max_queries: of Square, >= 1.
      num_targets: likeliest wrong classes that "apgd_t" and "fab_t" aim at, >= 1.
      restarts: of the gradient attacks, >= 1.
      bounds: smallest and largest value of an image.
      batch_size: most images at once, for a fixed memory; None for all. It does not change the result.
      confidence: nominal coverage of the interval, in (0, 1).
      loop: see `dl_core.loops`.
      progress: called after each batch with (attack, images attacked, images to be attacked); not inside `jit`.

    Returns:
      RobustAccuracy.

    Raises:
      UsageError: no or unknown attacks, two of one name, options below 1, confidence outside (0, 1), no images; see
        `dl_core.attacks.checks.check_attack`.
    """
    check_confidence(confidence)
    check_at_least(1, steps=steps, max_queries=max_queries, num_targets=num_targets, restarts=restarts)
    problem = check_evaluated(
        apply_fn, params, images, labels, bounds=bounds, eps=eps, norm=norm, key=key, batch_size=batch_size
    )
    batch, hidden = len(images), traced(images, labels, params, eps, key)
    at_once = None if hidden else batch_size
    everyone, keys = np.arange(batch), image_keys(key, batch)
    radius = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (batch,))
    logits = check_logits(
        in_pieces(lambda rows: _logits(problem._replace(images=take(images, rows))), everyone, at_once, images)
    )
    members = _members(
        attacks,
        problem,
        logits.shape[1],
        norm,
        steps=steps,
        max_queries=max_queries,
        num_targets=num_targets,
        restarts=restarts,
    )
    worst = _start(problem, logits)
    history, seconds = [worst], []
    for index, (name, attack) in enumerate(members):
        began = time.perf_counter()
        arguments = (images, problem.labels, _fold(keys, index), radius)
        run = functools.partial(_run, attack, apply_fn, params, arguments, norm=norm, bounds=bounds, loop=loop)
        if hidden:
            start = choose(worst.robust, images, worst.adversarial)  # what is broken already is left alone
            worst = _merge(worst, run(everyone, start=start), index)
        elif len(survivors := np.flatnonzero(worst.robust)):
            report = None if progress is None else functools.partial(progress, name)
            found = in_pieces(run, survivors, at_once, images, progress=report)
            worst = jax.block_until_ready(_merge(worst, _spread(found, survivors, worst), index))
        history.append(worst)
        seconds.append(np.nan if hidden else time.perf_counter() - began)
    return _result([name for name, _ in members], history, seconds, confidence, hidden)


def _members(
    attacks: Attacks, problem: Problem, classes: int, norm: str, *, steps: int, max_queries: int, **runs: int
) -> list[tuple[str, Attack]]:
    """Name and function of each attack."""
    pairs = attacks.items() if isinstance(attacks, Mapping) else [(a, a) if isinstance(a, str) else a for a in attacks]
    members = []
    for name, attack in pairs:
        if isinstance(attack, str):
            if attack == "square" and (norm == "l1" or problem.images.ndim != 4):
                raise UsageError(
                    f'the attack "square" needs images [batch, height, width, channels] and norm="linf" or "l2"; got '
                    f"{list(problem.images.shape)} and {norm!r}: leave it out of attacks"
                )
            attack = _named(attack, classes, steps, max_queries, **runs)
        if not callable(attack):
            raise UsageError(f"attacks: {name!r} must be a function, got {type(attack).__name__}")
        members.append((name, attack))
    names = [name for name, _ in members]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"attacks must be one or more, each with a name of its own; got {names}")
    return members


def _named(name: str, classes: int, steps: int, max_queries: int, *, num_targets: int, restarts: int) -> Attack:
    if name == "square":
        return functools.partial(square, max_queries=max_queries)
    options = {"steps": steps, "restarts": restarts}
    aimed = {**options, "num_targets": min(num_targets, classes - 1)}
    known: dict[str, Attack] = {
        "apgd_ce": functools.partial(apgd, loss="cross_entropy", **options),
        "apgd_dlr": functools.partial(apgd, loss="dlr" if classes >= 3 else "margin", **options),
        "apgd_t": functools.partial(apgd, loss="dlr" if classes >= 4 else "margin", **aimed),
        "fab": functools.partial(fab, **options),
        "fab_t": functools.partial(fab, **aimed),
    }
    if name not in known:
        raise unknown_name("attack", name, NAMED)
    return known[name]


def _run(
    attack: Attack,
    apply_fn: ApplyFn,
    params: Any,
    arguments: tuple[Any, ...],
    rows: Int[np.ndarray, " part"],
    *,
    start: Float[Array, "batch ..."] | None = None,
    **options: Any,
) -> Attacked:
    images, labels, keys, eps = arguments if start is not None else take(arguments, rows)
    originals, images = images, images if start is None else start
    return attack_once(attack, apply_fn, params, images, labels, keys, eps=eps, originals=originals, **options)


@jax.jit
def _fold(keys: Key[Array, " batch"], index: int | Int[Array, ""]) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


@jax.jit
def _logits(problem: Problem) -> Float[Array, "batch classes"]:
    return problem.logits(problem.images)


@jax.jit
def _start(problem: Problem, logits: Float[Array, "batch classes"]) -> _Worst:
    gain, robust = margin(logits, problem.labels), logits.argmax(axis=1) == problem.labels
    return _Worst(problem.images, gain, robust, jnp.full_like(problem.labels, -1), jnp.zeros_like(problem.labels))


def _spread(found: Attacked, rows: Int[np.ndarray, " rows"], worst: _Worst) -> Attacked:
    """Results of some images in the places of all, so that one program merges any number of them."""
    batch = len(worst.robust)

    def spread(leaf: Any, elsewhere: Any) -> Any:
        whole = np.array(np.broadcast_to(np.asarray(elsewhere, leaf.dtype), (batch, *leaf.shape[1:])))
        whole[rows] = np.asarray(leaf)
        return whole

    elsewhere = (worst.adversarial, False, -np.inf, 0)
    return Attacked(*map(spread, found, elsewhere))


@jax.jit
def _merge(worst: _Worst, found: Attacked, index: int | Int[Array, ""]) -> _Worst:
    """The worst of what was known and what one attack found."""
    broken = worst.robust & found.success
    worse = broken | (worst.robust & (found.margin > worst.margin))
    return _Worst(
        adversarial=choose(worse, found.adversarial, worst.adversarial),
        margin=jnp.where(worse, found.margin, worst.margin),
        robust=worst.robust & ~broken,
        fooled_by=jnp.where(broken, index, worst.fooled_by),
        queries=worst.queries + jnp.where(worst.robust, found.queries, 0),
    )


def _result(
    names: Sequence[str], history: Sequence[_Worst], seconds: Sequence[float], confidence: float, hidden: bool
) -> RobustAccuracy:
    xp = jnp if hidden else np
    robust = xp.stack([xp.asarray(worst.robust) for worst in history]).sum(axis=1)
    queries = xp.stack([xp.asarray(worst.queries) for worst in history]).sum(axis=1)  # NumPy counts in 64 bits
    batch, worst = len(history[0].robust), history[-1]
    interval = wilson_interval(robust[-1] if hidden else int(robust[-1]), batch, confidence)
    shares = robust / batch
    table = AttackTable(
        Names(names), shares[1:], robust[:-1] - robust[1:], queries[1:] - queries[:-1], xp.asarray(seconds)
    )
    number = jnp.asarray if hidden else float
    return RobustAccuracy(
        number(shares[-1]),
        number(interval.low),
        number(interval.high),
        number(shares[0]),
        table,
        worst.adversarial,
        worst.robust,
        worst.fooled_by,
        worst.queries,
    )
