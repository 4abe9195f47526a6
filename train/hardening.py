"""Adversarial training of any classification: what `config.hardening` switches on.

    recipe    images trained on                                                      an epoch costs about
    madry     PGD's, `steps` steps from a random start                               steps + 1 epochs
    trades    clean ones, and those where the answer has moved farthest from theirs  steps + 2
    free      every batch `replays` times, each time one step further                replays
    fast      FGSM's, one step of 1.25 eps from a random start                       2

The change is made after the augmentation and before the normalisation, so eps is in units of images in [0, 1]. The
attack sees the network as the loss does: the same dropout, BatchNorm by the statistics of its batch. Only the forward
pass of the loss moves BatchNorm's running averages: with the changed images, for trades with the clean ones first. (The
program of TRADES attacks the network in evaluation mode.)

What the recipes do not protect against is said in `dl_core.attacks.hardening`: other norms, larger changes, anything
but small changes of pixels. The accuracy under PGD in the records is an upper bound; report that of a whole ensemble of
attacks. `fast` and `free` can overfit their single steps, see `warning`; madry and trades far less.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from dl_core.attacks.balls import random_in_ball
from dl_core.attacks.hardening import FAST_STEP, adversarial_images, inner_loop, next_perturbation, overfitted
from dl_core.loops import scan
from train.report.pages import Page, Section
from train.report.summary import percent
from train.state import TrainState
from train.step import LossFn, Metrics, make_train_step

PGD_STEP = 2.5  # times eps / steps: enough to cross the ball (Madry et al., 2018, appendix B)
SPLITS = ("train", "validation", "test")
MEASURES = {"accuracy": "clean", "fgsm_accuracy": "FGSM", "robust_accuracy": "PGD"}


def step_size(options: Any) -> float:
    """α of `config.hardening`, or the recipe's own."""
    own = {"free": options.eps, "fast": FAST_STEP * options.eps}
    return options.step_size or own.get(options.recipe, PGD_STEP * options.eps / options.steps)


def updates_per_step(options: Any) -> int:
    """How many updates of the parameters one step of training makes, which is one batch: the replays of `free`."""
    return options.replays if options.recipe == "free" else 1


def radii(options: Any, keys: Key[Array, " batch"]) -> Float[Array, " batch"]:
    """eps of each image: 0 for the `clean_share` that is left as it is."""
    clean = jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1)) < options.clean_share
    return jnp.where(clean, 0.0, options.eps)


def harden(
    options: Any,
    loss_of: Callable[[Float[Array, "batch ..."]], Float[Array, " batch"]],
    images: Float[Array, "batch ..."],
    keys: Key[Array, " batch"],
) -> Float[Array, "batch ..."]:
    """The images that madry, trades and fast train on.

    Args:
      options: `config.hardening`.
      loss_of: images -> what the attack raises, parameters held.
      images: augmented, in [0, 1].
      keys: one for each image.
    """
    return adversarial_images(
        loss_of,
        images,
        eps=radii(options, keys),
        step_size=step_size(options),
        steps=1 if options.recipe == "fast" else options.steps,
        norm=options.norm,
        keys=keys,
    )


def make_step(
    options: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    seed: int | Array,
    schedule: optax.Schedule,
    steps_per_epoch: int = 1,
    accumulate: int = 1,
    axis_name: str | None = None,
    **others: Any,
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """The train step of any recipe: that of `train.step`, or for `free` one that replays every batch.

    A step of `free` is `replays` updates on one batch, augmented once. Its δ starts at random in the ball instead of
    where it was after the batch before, whose images were others; Wong et al. (2020, table 1) find either start as
    good. So the state is the same as without hardening. Optimiser and schedule count updates, `state.step` batches.

    Args:
      options: `config.hardening`.
      loss_fn: of the task; for `free` its batch has "perturbation", and it trains on clip(images + perturbation).
      optimizer, schedule: made for `updates_per_step` times as many steps.
      seed, steps_per_epoch, accumulate, axis_name, **others: see `train.step.make_train_step`.

    Returns:
      The pure step. Its metrics are averages over the replays.
    """
    replays = updates_per_step(options)
    common = {"seed": seed, "steps_per_epoch": steps_per_epoch, "axis_name": axis_name, **others}
    if options.recipe != "free":
        return make_train_step(loss_fn, optimizer, schedule=schedule, accumulate=accumulate, **common)

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        first = state.step
        key = jax.random.fold_in(jax.random.key(seed), first)
        rows = jnp.arange(len(batch["image"]), dtype=jnp.int32)
        if axis_name is not None:
            rows = rows + jax.lax.axis_index(axis_name) * len(rows)
        placed = {**batch, "row": rows, "epoch": jnp.full_like(rows, first // steps_per_epoch)}
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 2), rows)
        eps = radii(options, keys)

        def replay(carry: tuple[TrainState, Array], number: Array) -> tuple[tuple[TrainState, Array], Metrics]:
            state, perturbation = carry

            def loss_of(params: Any, perturbation: Array) -> Any:
                return loss_fn(params, state.model_state, {**placed, "perturbation": perturbation}, key)

            (_, aux), (grads, ascent) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
                state.params, perturbation
            )
            # the plain step does the rest, from a linear loss whose gradient is the one just computed
            linear = lambda params, *_: (sum(map(jnp.vdot, *map(jax.tree.leaves, (params, grads)))), aux)
            rate = lambda step: schedule(step * replays + number)
            state, metrics = make_train_step(linear, optimizer, schedule=rate, **common)(state, batch)
            perturbation = next_perturbation(
                perturbation, ascent, eps=eps, step_size=step_size(options), norm=options.norm
            )
            return (state.replace(step=first), perturbation), metrics

        start = random_in_ball(keys, jnp.zeros(batch["image"].shape), eps, options.norm)
        (state, _), metrics = scan(replay, (state, start), jnp.arange(replays), loop=inner_loop())
        return state.replace(step=first + 1), jax.tree.map(lambda each: each.mean(axis=0), metrics)

    return train_step


def robust_sums(
    options: Any,
    predict: Callable[[Float[Array, "batch ..."]], Float[Array, "batch classes"]],
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    valid: Float[Array, " batch"],
) -> dict[str, tuple[Array, Array]]:
    """Accuracy under two cheap attacks within eps, beside the clean one.

    FGSM is one step of eps. PGD takes `test_steps` of 2.5 eps / test_steps, and starts at the image: a random start
    would depend on how a split is cut into batches. An image counts that is right when clean and at the end of either
    attack (for PGD, of both).

    Args:
      options: `config.hardening`.
      predict: images -> logits, in evaluation mode.
      images: in [0, 1].
      labels: classes.
      valid: 1, or 0 for padding.

    Returns:
      "fgsm_accuracy" and "robust_accuracy" as (sum, number); nothing without a recipe.
    """
    if options.recipe == "none" or options.test_steps == 0:
        return {}
    loss_of = lambda x: optax.softmax_cross_entropy_with_integer_labels(predict(x), labels)
    right = predict(images).argmax(axis=-1) == labels
    sums = {}
    for name, steps, size in (
        ("fgsm_accuracy", 1, options.eps),
        ("robust_accuracy", options.test_steps, PGD_STEP * options.eps / options.test_steps),
    ):
        attacked = adversarial_images(loss_of, images, eps=options.eps, step_size=size, steps=steps, norm=options.norm)
        right &= predict(attacked).argmax(axis=-1) == labels
        sums[name] = ((right * valid).sum(), valid.sum())
    return sums


def warning(figures: Mapping[str, Any], prefix: str = "") -> str:
    """Says so where a network has overfitted the single step that it was trained with; "" where all is well.

    Args:
      figures: of a validation, or of a whole summary.
      prefix: of the names in there, e.g. "validation_".
    """
    one, many = (figures.get(f"{prefix}{name}") for name in ("fgsm_accuracy", "robust_accuracy"))
    if one is None or many is None or not overfitted(one, many):
        return ""
    return (
        f"catastrophic overfitting: accuracy {percent(one)} under one step of the attack and {percent(many)} under "
        "many; the network has learnt to fool the single step. Take the recipe madry, or fast with a smaller "
        "step_size, a smaller learning rate or fewer epochs"
    )


def pages(options: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Page]:
    """The report's page on robustness, of a hardened run.

    Args:
      options: `config.hardening` as stored.
      summary: of the run.
    """
    if "validation_robust_accuracy" not in summary:
        return []
    rows = [
        [split, *(percent(summary[f"{split}_{name}"]) for name in MEASURES)]
        for split in SPLITS
        if f"{split}_robust_accuracy" in summary
    ]
    text = (
        f"Recipe {options['recipe']}, changes of at most {options['eps']:.4g} in the norm {options['norm']}. FGSM "
        f"takes one step, PGD {options['test_steps']} from the image. The accuracy under PGD is an upper bound: "
        "stronger attacks may find more, and other norms, larger changes, rotations or noise are another matter. In "
        "the curves of training, accuracy and loss are those of the images trained on, for most recipes the changed "
        "ones."
    )
    trouble = warning(summary, "validation_")
    sections = [Section("Accuracy under attack", text, table=[("split", *MEASURES.values()), *rows])]
    return [Page("Robustness", [Section("Warning", trouble), *sections] if trouble else sections)]
