"""The surrogate attack: a model of one's own learns the answers of another, and is attacked in its place.

Papernot, McDaniel, Goodfellow, Jha, Celik, Swami (2017), "Practical Black-Box Attacks against Machine Learning",
https://arxiv.org/abs/1602.02697, algorithm 1 (course notes). The attacked model f is only ever asked. In every round
the surrogate g learns f's answers on the set S, which then grows by points from where g changes fastest:

    S ← S ∪ {x + λ sign(∇ₓ g(x)_{f(x)}) : x ∈ S}

Then any attack of this package is run on g, and `transfer` tells what f makes of its images:

    stolen = surrogate(apply_fn, params, images, surrogate_apply_fn, surrogate_params, key=key)
    found = pgd(surrogate_apply_fn, stolen.params, victims, labels, eps=0.1, key=key)
    carried = transfer(apply_fn, params, victims, labels, found.adversarial)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.balls import distance
from dl_core.attacks.checks import Problem, check_at_least, check_attack, check_images, check_logits, first_logits
from dl_core.attacks.result import ApplyFn, AttackResult, choose, succeeded
from dl_core.errors import UsageError, unknown_name
from dl_core.loops import while_loop

LABELS = ("hard", "soft")


class SurrogateResult(NamedTuple):
    """A model trained on the answers of another.

    params: of the surrogate.
    queries: how many images the attacked model was asked about.
    agreement: share of them on which both models predict the same class, after the training.
    agreement_before: for each round, the same share among the images that were new in it, before the surrogate had
      seen them; the first value is that of the untrained surrogate. A round without a query left is no round.
    """

    params: Any
    queries: Int[Array, ""]
    agreement: Float[Array, ""]
    agreement_before: Float[Array, " rounds_and_first"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Options:
    bounds: tuple[float, float]
    labels: str
    batch_size: int
    optimizer: optax.GradientTransformation


class _Collected(NamedTuple):
    """Images asked about, and the answers; rows from `position` on are still empty.

    agreed: on how many of those of this round the surrogate predicted the answer.
    """

    images: Float[Array, "rows ..."]
    answers: Float[Array, "rows classes"]
    position: Int[Array, ""]
    agreed: Int[Array, ""]


class _Recalled(NamedTuple):
    position: Int[Array, ""]
    agreed: Int[Array, ""]


class _Training(NamedTuple):
    params: Any
    optimizer_state: Any
    steps: Int[Array, ""]


def surrogate(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    surrogate_apply_fn: ApplyFn,
    surrogate_params: Any,
    *,
    key: Key[Array, ""],
    rounds: int = 4,
    max_queries: int | None = None,
    augmentation_step: float = 0.1,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: optax.GradientTransformation | None = None,
    labels: str = "hard",
    bounds: tuple[float, float] = (0.0, 1.0),
    loop: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> SurrogateResult:
    """Trains a surrogate g ≈ f on nothing but f's answers, with Jacobian-based augmentation.

    Args:
      apply_fn: (params, images) -> logits of the attacked model f, which is asked for them and never differentiated;
        a service elsewhere can be wrapped by `jax.pure_callback`. It is given `batch_size` images at a time, and in the
        last question of a round repetitions of some fill the batch.
      params: of f; never changed.
      images: the first images to ask about, inside the bounds; a few of each class do. Their labels are not needed.
      surrogate_apply_fn: (params, images) -> logits of g, for the same classes; any architecture, as in inference.
      surrogate_params: of g before the training; floats, all of them are trained.
      key: for the minibatches, and for which images are augmented where the budget is short.
      rounds: how often the set is augmented, >= 0; each doubles it, as far as the budget goes.
      max_queries: hard limit of the images that f is asked about, >= 1; None: len(images) 2**rounds. Of more images
        the first are taken.
      augmentation_step: λ, in the units of the images, >= 0.
      epochs: passes over the set in each round, >= 0.
      batch_size: images in a step of training, and in one question to f, >= 1.
      optimizer: of Optax; None: Adam at 1e-3. Its state starts anew in every round.
      labels: "hard": f gives a class; "soft": g learns the softmax of f's logits.
      bounds: smallest and largest value of an image.
      loop: how the steps are driven; see `dl_core.loops`.
      progress: called with (rounds done, rounds in all); not inside `jit`.

    Returns:
      SurrogateResult.

    Raises:
      UsageError: see `check_attack`; models with different numbers of classes; options out of range; with soft labels,
        f's answers look like probabilities.
    """
    nothing = jnp.zeros(len(images), jnp.int32)
    needs_key = "the minibatches are random"
    attacked = check_attack(apply_fn, params, images, nothing, bounds=bounds, key=key, needs_key=needs_key)
    own = check_attack(surrogate_apply_fn, surrogate_params, images, nothing, bounds=bounds)
    if labels not in LABELS:
        raise unknown_name("labels", labels, LABELS)
    if key.ndim:
        raise UsageError(f"key must be one key: one surrogate is trained for all images; got {list(key.shape)}")
    check_at_least(0, rounds=rounds, epochs=epochs, augmentation_step=augmentation_step)
    check_at_least(1, batch_size=batch_size, **{"len(images)": len(images)})
    if max_queries is not None:
        check_at_least(1, max_queries=max_queries)
    classes = [jax.eval_shape(_answer, problem, images).shape[1] for problem in (attacked, own)]
    if classes[0] != classes[1]:
        raise UsageError(f"the surrogate must have the {classes[0]} classes of the attacked model, it has {classes[1]}")

    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(surrogate_params)):
        raise UsageError(
            "surrogate_params must be floating numbers, all of them are trained; bind the others to surrogate_apply_fn"
        )

    budget = len(images) * 2**rounds if max_queries is None else max_queries
    # of the set, round by round; a round for which nothing is left of the budget is none
    sizes = sorted({min(len(images) * 2**number, budget) for number in range(rounds + 1)})
    options = _Options(bounds, labels, batch_size, _adam() if optimizer is None else optimizer)
    collected = _reserve(images, sizes[-1], classes[0])
    agreement_before, here = [], jnp.arange(sizes[-1])
    for number, size in enumerate(sizes):
        known = sizes[number - 1] if number else 0
        order_key, training_key = jax.random.split(jax.random.fold_in(key, number))
        # the first images are asked about as they are: augmented by a step of length zero, from themselves
        order = here if number == 0 else jax.random.permutation(order_key, known)
        sources = jnp.zeros_like(here).at[known:size].set(order[: size - known])
        step_length = jnp.asarray(augmentation_step if number else 0, images.dtype)
        collect = Partial(_collect, options, attacked, own, sources, step_length, jnp.int32(size))
        collected = collected._replace(agreed=jnp.zeros_like(collected.agreed))
        pieces = -(-(size - known) // batch_size)
        collected = while_loop(Partial(_always), collect, collected, max_steps=pieces, loop=loop)
        if number == 0 and labels == "soft":
            check_logits(collected.answers[:size])
        agreement_before.append(collected.agreed / jnp.float32(size - known))
        training = _Training(own.params, _initial(options, own.params), jnp.int32(0))
        learn = Partial(_learn, options, own.apply_fn, collected, training_key)
        steps = epochs * -(-size // batch_size)
        training = while_loop(Partial(_always), learn, training, max_steps=steps, loop=loop)
        own = own._replace(params=training.params)
        if progress is not None and not isinstance(collected.agreed, Tracer):
            progress(number + 1, len(sizes))
    recalled = _Recalled(jnp.int32(0), jnp.int32(0))
    recall = Partial(_recall, options, own, collected)
    recalled = while_loop(Partial(_always), recall, recalled, max_steps=-(-sizes[-1] // batch_size), loop=loop)
    return SurrogateResult(
        params=own.params,
        queries=jnp.int32(sizes[-1]),
        agreement=recalled.agreed / jnp.float32(sizes[-1]),
        agreement_before=jnp.stack(agreement_before),
    )


def transfer(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    adversarial: Float[Array, "batch ..."],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    target: int | Int[Array, " batch"] | None = None,
    norm: str = "linf",
) -> AttackResult:
    """What a model makes of adversarial images that were found on another.

    The transfer rate counts the images that the model had right, those with a step: `result.success[result.steps > 0]
    .mean()`.

    Args:
      apply_fn: (params, images) -> logits of the attacked model.
      params: of the attacked model; never changed.
      images: the originals, inside the bounds.
      labels: the true classes.
      adversarial: changed images of the same shape.
      bounds: smallest and largest value of an image.
      target: classes to be predicted instead; None is content with any wrong one.
      norm: in which the distance is measured: "linf", "l2" or "l1".

    Returns:
      AttackResult: two queries and one step; one query and no step for an image that is misclassified as it is, which
      is returned unchanged as by every attack.

    Raises:
      UsageError: see `check_attack`; adversarial images of another shape or outside the bounds.
    """
    problem = check_attack(apply_fn, params, images, labels, bounds=bounds, target=target, norm=norm)
    if jnp.shape(adversarial) != images.shape:
        raise UsageError(f"adversarial must have the shape of images {list(images.shape)}, got {adversarial.shape}")
    check_images(adversarial, bounds)
    return _transfer(problem, adversarial, first_logits(problem), norm)


@functools.partial(jax.jit, static_argnums=3)
def _transfer(
    problem: Problem, adversarial: Float[Array, "batch ..."], logits: Float[Array, "batch classes"], norm: str
) -> AttackResult:
    done = succeeded(logits, problem.labels, problem.target)
    kept = choose(done, problem.images, adversarial)
    moved = (~done).astype(jnp.int32)
    success = done | succeeded(problem.logits(kept), problem.labels, problem.target)
    return AttackResult(kept, success, distance(kept - problem.images, norm), queries=1 + moved, steps=moved)


@functools.cache
def _adam() -> optax.GradientTransformation:
    return optax.adam(1e-3)  # always the same object, so that the step of training is compiled once


def _answer(problem: Problem, images: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
    return problem.logits(images)


def _always(state: Any) -> Bool[Array, ""]:
    del state
    return jnp.bool_(True)


def _reserve(images: Float[Array, "batch ..."], rows: int, classes: int) -> _Collected:
    """Room for the largest set, so that no round has a shape of its own."""
    kept = jnp.zeros((rows, *images.shape[1:]), images.dtype).at[: len(images)].set(images[:rows])
    return _Collected(kept, jnp.zeros((rows, classes), jnp.float32), jnp.int32(0), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=0)
def _initial(options: _Options, params: Any) -> Any:
    return options.optimizer.init(params)


def _collect(
    options: _Options,
    attacked: Problem,
    own: Problem,
    sources: Int[Array, " rows"],
    step_length: Float[Array, ""],
    stop: Int[Array, ""],
    collected: _Collected,
) -> _Collected:
    """Fills the next rows: each is its source, moved to where the surrogate changes, and what f answers there."""
    rows, new = _next_rows(options, collected.position, stop)
    chosen = sources[jnp.minimum(rows, len(sources) - 1)]
    images, classes = collected.images[chosen], collected.answers[chosen].argmax(axis=1)

    def of_its_class(x: Float[Array, "batch ..."]) -> Float[Array, ""]:
        return jnp.take_along_axis(own.logits(x), classes[:, None], axis=1).sum()

    moved = jnp.clip(images + step_length * jnp.sign(jax.grad(of_its_class)(images)), *options.bounds)
    answers = attacked.logits(moved)
    agreed = new & (own.logits(moved).argmax(axis=1) == answers.argmax(axis=1))
    places = jnp.where(new, rows, len(sources))  # the last batch may be cut short
    return _Collected(
        images=collected.images.at[places].set(moved, mode="drop"),
        answers=collected.answers.at[places].set(answers.astype(jnp.float32), mode="drop"),
        position=jnp.minimum(collected.position + options.batch_size, stop),
        agreed=collected.agreed + agreed.sum(),
    )


def _learn(
    options: _Options, apply_fn: Partial, collected: _Collected, key: Key[Array, ""], training: _Training
) -> _Training:
    """One step of the surrogate on a minibatch of the set, drawn with replacement."""
    draw = jax.random.fold_in(key, training.steps)
    indices = jax.random.randint(draw, (options.batch_size,), 0, collected.position)
    images, answers = collected.images[indices], collected.answers[indices]
    hard = jax.nn.one_hot(answers.argmax(axis=1), answers.shape[1])
    wanted = hard if options.labels == "hard" else jax.nn.softmax(answers)

    def loss(params: Any) -> Float[Array, ""]:
        return optax.softmax_cross_entropy(apply_fn(params, images).astype(jnp.float32), wanted).mean()

    updates, state = options.optimizer.update(
        jax.grad(loss)(training.params), training.optimizer_state, training.params
    )
    return _Training(optax.apply_updates(training.params, updates), state, training.steps + 1)


def _recall(options: _Options, own: Problem, collected: _Collected, recalled: _Recalled) -> _Recalled:
    rows, asked = _next_rows(options, recalled.position, collected.position)
    rows = jnp.minimum(rows, len(collected.images) - 1)
    agreed = own.logits(collected.images[rows]).argmax(axis=1) == collected.answers[rows].argmax(axis=1)
    return _Recalled(recalled.position + options.batch_size, recalled.agreed + (agreed & asked).sum())


def _next_rows(
    options: _Options, position: Int[Array, ""], stop: Int[Array, ""]
) -> tuple[Int[Array, " batch_size"], Bool[Array, " batch_size"]]:
    rows = position + jnp.arange(options.batch_size, dtype=jnp.int32)
    return rows, rows < stop
