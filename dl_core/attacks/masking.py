"""Is the model robust, or does it only hide its gradient? Checks that an attack's failure means something.

Athalye, Carlini, Wagner (2018), "Obfuscated Gradients Give a False Sense of Security", https://arxiv.org/abs/1802.00420;
Carlini et al. (2019), "On Evaluating Adversarial Robustness", https://arxiv.org/abs/1902.06705. Of a model with useful
gradients all of this holds:

* hardly any image is without a gradient;
* the loss rises along the gradient, and more than along a random direction;
* without a limit on the perturbation the attack succeeds on every image;
* many steps break what one step breaks, and what random points of the ball break;
* an attack that sees only scores breaks nothing that the attack with gradients does not.

A model that fails one of them may be as weak as any other: attack it with its masking parts replaced by smooth ones, or
without gradients. A model that passes is not proven robust.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dl_core.attacks.apgd import apgd
from dl_core.attacks.balls import image_keys, unit_step
from dl_core.attacks.checks import Problem, check_at_least, check_logits
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.objectives import margin, objective
from dl_core.attacks.pieces import in_pieces, take, traced
from dl_core.attacks.random_search import random_direction, random_search
from dl_core.attacks.result import ApplyFn
from dl_core.attacks.square import square
from dl_core.attacks.verification import Attack, attack_once, check_evaluated
from dl_core.errors import UsageError

FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # of the radius, at which the loss surface is looked at
LEAST_WINS = 0.75  # of a useless gradient one half: it is as good as a random direction


class LossSurface(NamedTuple):
    """The margin (the best wrong logit minus that of the label) on the way out of the images, mean of those correct.

    fractions: of the radius.
    along_gradient: its change in the direction of the gradient of the loss.
    along_random: in a random direction of the same length.
    """

    fractions: Float[np.ndarray, " points"]
    along_gradient: Float[np.ndarray, " points"]
    along_random: Float[np.ndarray, " points"]


class MaskingReport(NamedTuple):
    """Figures of each check, and what is wrong.

    warnings: what points to masked gradients, in words; empty where nothing does.
    clean_accuracy: without an attack.
    white_box, one_step, random_search, black_box: accuracy under each attack; nan where it was left out.
    one_step_alone, random_search_alone, black_box_alone: images that it breaks and the white box does not.
    vanished: share of the correct images whose margin has no gradient at all.
    saturated: share whose cross-entropy has none while the margin has one.
    gradient_wins: share, of those with a gradient, on which the margin rises more along it than in a random direction.
    median_margin: of the correct images, in logits: by how much the label leads.
    surface: see `LossSurface`.
    large_eps: larger radii.
    large_eps_accuracy: accuracy under the white box within each.
    """

    warnings: tuple[str, ...]
    clean_accuracy: float
    white_box: float
    one_step: float
    random_search: float
    black_box: float
    one_step_alone: int
    random_search_alone: int
    black_box_alone: int
    vanished: float
    saturated: float
    gradient_wins: float
    median_margin: float
    surface: LossSurface
    large_eps: Float[np.ndarray, " radii"]
    large_eps_accuracy: Float[np.ndarray, " radii"]


def check_gradient_masking(
    apply_fn: ApplyFn,
    params: Any,
    images: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    *,
    key: Key[Array, "*batch"],
    eps: float,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 20,
    max_queries: int = 500,
    num_targets: int = 9,
    num_random: int = 100,
    tolerance: float = 0.05,
    white_box: Attack | None = None,
    black_box: Attack | None = None,
    batch_size: int | None = None,
    loop: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> MaskingReport:
    """Compares attacks that must come out in a certain order, and looks at the gradient itself.

    Runs on the host, check by check; not inside of `jit`. A constant model fails the check of large radii as well:
    nothing can be done to it, and its accuracy says so.

    Args:
      apply_fn: (params, images) -> logits, as in inference, normalisation included.
      params: pytree of everything that apply_fn needs; never changed.
      images: inside the bounds; some hundred are enough.
      labels: the true classes.
      key: one key, or one for each image.
      eps: radius at which robustness is claimed, > 0, in the units of the images.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of an image.
      steps: of the white box towards each class, >= 2.
      max_queries: of the black box, >= 1.
      num_targets: classes that the white box aims at, >= 1; cut to the number there are.
      num_random: random points of each image's ball, >= 1.
      tolerance: share of the correct images, in [0, 1), and always one image, that may fall out of line in each check:
        attacks are heuristics, and an honest model has a few images on which a weaker one is luckier.
      white_box: (apply_fn, params, images, labels, *, key, eps, norm, bounds, loop) -> AttackResult: the evaluation's
        own attack, say, whose failure is to be believed. By default `apgd` on the margin, towards each of the likeliest
        classes: an attack on the cross-entropy alone may lose to a black box on an honest model too.
      black_box: likewise; by default `square` where it can be used (images [batch, height, width, channels] and the
        norms "linf" and "l2"), else none. Another network's adversarial examples make it a test of transfer.
      batch_size: most images at once, for a fixed memory; None for all.
      loop: see `dl_core.loops`.
      progress: called after each batch with (check, images done, images in all).

    Returns:
      MaskingReport.

    Raises:
      UsageError: inside `jit`; eps that is no positive number; an option out of its range; see
        `dl_core.attacks.checks.check_attack`.
    """
    if traced(images, labels, params, eps, key):
        raise UsageError("check_gradient_masking runs attack after attack on the host: call it outside of jit and vmap")
    if np.ndim(eps) or not eps > 0:
        raise UsageError(f"eps must be one positive number, the radius of the claim, got {eps}")
    check_at_least(2, steps=steps)
    check_at_least(1, max_queries=max_queries, num_targets=num_targets, num_random=num_random)
    if not 0 <= tolerance < 1:
        raise UsageError(f"tolerance must be a share of the images in [0, 1), got {tolerance}")
    problem = check_evaluated(
        apply_fn, params, images, labels, bounds=bounds, eps=eps, norm=norm, key=key, batch_size=batch_size
    )
    bounds, keys, everyone = (float(bounds[0]), float(bounds[1])), image_keys(key, len(images)), np.arange(len(images))
    if black_box is None and images.ndim == 4 and norm != "l1":
        black_box = functools.partial(square, max_queries=max_queries)

    def over_images(name: str, function: Callable[[Any], Any]) -> Any:
        report = None if progress is None else functools.partial(progress, name)
        part = lambda rows: function(take((images, problem.labels, keys), rows))
        return jax.tree.map(np.asarray, in_pieces(part, everyone, batch_size, images, progress=report))

    def broken_by(name: str, attack: Attack, radius: float = eps) -> Bool[np.ndarray, " batch"]:
        def one(part: Any) -> Bool[Array, " part"]:
            radii = jnp.full(len(part[0]), radius, jnp.float32)
            return attack_once(attack, apply_fn, params, *part, eps=radii, norm=norm, bounds=bounds, loop=loop).success

        return over_images(name, one)

    look = over_images(
        "gradient",
        lambda part: _look(problem._replace(images=part[0], labels=part[1]), part[2], jnp.float32(eps), bounds, norm),
    )
    correct, n = look.correct, int(look.correct.sum())
    check_logits(jnp.asarray(look.logits))
    if white_box is None:
        aims = min(num_targets, look.logits.shape[1] - 1)
        white_box = functools.partial(apgd, loss="margin", num_targets=aims, steps=steps)
    white = broken_by("white box", white_box)
    others = {
        "one step": broken_by("one step", fgsm),
        "random search": broken_by("random search", functools.partial(random_search, num_random=num_random)),
    }
    if black_box is not None:
        others["black box"] = broken_by("black box", black_box)
    allowed = max(1, int(tolerance * n))
    covering = (bounds[1] - bounds[0]) * {"linf": 1.0, "l2": images[0].size ** 0.5, "l1": float(images[0].size)}[norm]
    radii = np.unique(np.minimum([2 * eps, 4 * eps, covering / 2, covering], covering))
    radii = radii[radii > eps]
    within = [white] + [broken_by(f"radius {radius:.3g}", white_box, float(radius)) for radius in radii]
    large = np.logical_or.accumulate(np.stack(within))[1:]  # broken within a smaller radius is broken within a larger

    share = lambda marked: float((marked & correct).sum() / n) if n else float("nan")
    accuracy = lambda broken: float((~broken & correct).mean())
    steered = correct & ~look.vanished
    alone = {name: int((broken & ~white & correct).sum()) for name, broken in others.items()}
    mean = lambda values: values[:, correct].mean(axis=1) if n else np.full(len(values), np.nan)
    report = MaskingReport(
        warnings=(),
        clean_accuracy=float(correct.mean()),
        white_box=accuracy(white),
        one_step=accuracy(others["one step"]),
        random_search=accuracy(others["random search"]),
        black_box=accuracy(others["black box"]) if "black box" in others else float("nan"),
        one_step_alone=alone["one step"],
        random_search_alone=alone["random search"],
        black_box_alone=alone.get("black box", 0),
        vanished=share(look.vanished),
        saturated=share(look.saturated),
        gradient_wins=float(look.wins[steered].mean()) if steered.any() else float("nan"),
        median_margin=float(np.median(-look.margin[correct])) if n else float("nan"),
        surface=LossSurface(np.array(FRACTIONS), mean(look.along_gradient.T), mean(look.along_random.T)),
        large_eps=radii,
        large_eps_accuracy=(~large & correct[None]).mean(axis=1),
    )
    return report._replace(warnings=_warnings(report, alone, n, allowed))


class _Look(NamedTuple):
    """Of each image; along_gradient and along_random hold the change of the margin at FRACTIONS of the radius."""

    logits: Float[Array, "batch classes"]
    correct: Bool[Array, " batch"]
    margin: Float[Array, " batch"]
    vanished: Bool[Array, " batch"]
    saturated: Bool[Array, " batch"]
    wins: Bool[Array, " batch"]
    along_gradient: Float[Array, "batch points"]
    along_random: Float[Array, "batch points"]


def _look(
    problem: Problem, keys: Key[Array, " batch"], eps: Float[Array, ""], bounds: tuple[float, float], norm: str
) -> _Look:
    logits, of_margin, of_entropy = _gradients(problem)
    directions = unit_step(of_margin, norm), random_direction(keys, problem.images, norm)
    before = margin(logits, problem.labels)
    along = [
        jnp.stack([_margin_after(problem, eps * f, direction, bounds) for f in FRACTIONS], axis=1) - before[:, None]
        for direction in directions
    ]
    any_value = lambda gradient: (gradient != 0).reshape(len(gradient), -1).any(axis=1)
    return _Look(
        logits=logits,
        correct=logits.argmax(axis=1) == problem.labels,
        margin=before,
        vanished=~any_value(of_margin),
        saturated=any_value(of_margin) & ~any_value(of_entropy),
        wins=along[0].mean(axis=1) > along[1].mean(axis=1),
        along_gradient=along[0],
        along_random=along[1],
    )


@jax.jit
def _gradients(problem: Problem) -> tuple[Float[Array, "batch classes"], Any, Any]:
    """The logits, and the gradients of the margin and of the cross-entropy."""
    logits, backward = jax.vjp(problem.logits, problem.images)
    of = lambda loss: backward(jax.grad(lambda z: objective(z, problem.labels, None, loss).sum())(logits))[0]
    return logits, of("margin"), of("cross_entropy")


@functools.partial(jax.jit, static_argnums=3)
def _margin_after(
    problem: Problem, radius: Float[Array, ""], direction: Float[Array, "batch ..."], bounds: tuple[float, float]
) -> Float[Array, " batch"]:
    moved = jnp.clip(problem.images + (radius * direction).astype(problem.images.dtype), *bounds)
    return margin(problem.logits(moved), problem.labels)


def _warnings(report: MaskingReport, alone: dict[str, int], n: int, allowed: int) -> tuple[str, ...]:
    """In words: what was found, what should have been, and what to do."""
    if not n:
        return ("no image is classified correctly, so nothing can be said: are the labels those of these images?",)
    found = []
    if report.vanished * n > allowed:
        found.append(
            f"vanishing gradients: {report.vanished:.1%} of the correct images have a gradient of zero. Attack "
            "without gradients, or take what stops them (rounding, a threshold) for the identity on the way back"
        )
    if report.saturated * n > allowed:
        found.append(
            f"saturated logits: on {report.saturated:.1%} of the correct images the cross-entropy has no gradient, "
            f"the margin (in the median {report.median_margin:.3g} logits) has one. Attack the margin, or the "
            "difference of logits ratio"
        )
    if report.gradient_wins < LEAST_WINS and (1 - report.gradient_wins) * n > allowed:
        found.append(
            f"uninformative gradients: the margin rises more along them than in a random direction on only "
            f"{report.gradient_wins:.1%} of the correct images. Attack without gradients, or a smoothed model"
        )
    left = report.large_eps_accuracy[-1] if len(report.large_eps) else 0.0
    if left * n / max(report.clean_accuracy, 1e-12) > allowed:
        found.append(
            f"a perturbation without limit (eps = {report.large_eps[-1]:.3g}) leaves an accuracy of {left:.1%}, and "
            "must leave none: the attack fails, not the perturbation"
        )
    reasons = {
        "one step": "one step breaks {} images that many steps do not: more steps or another step size must do better",
        "random search": "random points of the ball break {} images that the attack with gradients does not",
        "black box": "the black box breaks {} images that the attack with gradients does not: the gradient misleads",
    }
    found += [reasons[name].format(f"{count} of {n}") for name, count in alone.items() if count > allowed]
    return tuple(found)
