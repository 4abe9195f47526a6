"""The page on what is left of a classifier's accuracy under attack, and how far to believe it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dl_core import plots
from dl_core.metrics.intervals import wilson_interval
from train.report.pages import Cell, Page, Section
from train.report.summary import percent

SHOWN = 6  # images in the picture
READING = (
    "Each attack may change every image by at most the radius, in units of images in [0, 1]. The accuracy is an upper "
    "bound: it says what these attacks could not do, not what nobody can. Read the strongest row (ensemble: four "
    "attacks of different kinds, each on what the ones before left). Noise is one random point of the ball: what it "
    "breaks needs no attacker. An image that is broken at a smaller radius counts as broken at a larger one.\n\n"
    "The score is how far the logits move over how far the image moves, squared, ‖f(x) − f(x*)‖² / ‖x − x*‖², at the "
    "radius that is shown. Queries are forward passes and gradients for one image, at that radius.\n\n"
    "Responsible use: attack models that are yours, or whose owner agreed, to learn what they withstand before "
    "somebody else does. A model that withstands these balls is not safe from rotations, patches, other cameras or "
    "wrong labels."
)
MASKING = (
    "A model can look robust because its gradient leads nowhere. Of a model with useful gradients, many steps break "
    "what one step and random points break, an attack without gradients breaks nothing more, and a large radius leaves "
    "nothing. Few images, so small differences say nothing."
)


def attack_page(
    attacked: Any,
    found: Mapping[str, Any],
    radii: Sequence[float],
    masking: Any,
    *,
    class_names: Sequence[str],
) -> Page:
    """The page.

    Args:
      attacked: `train.attack.Attacked`, n images.
      found: attack -> `train.attack.Found`.
      radii: rising, >= 0.
      masking: `dl_core.attacks.MaskingReport`, or None.
      class_names: one for each class.

    Returns:
      Page.
    """
    images, labels = np.asarray(attacked.images), np.asarray(attacked.labels)
    clean = _probabilities(attacked, images)
    right = clean.argmax(axis=1) == labels
    middle = len(radii) // 2
    curves = {name: _curve(radii, right, one.success) for name, one in found.items()}
    sections = [
        Section("How to read this", READING, wide=True),
        Section(
            f"Accuracy under attack, {len(labels)} test images",
            f"Score and queries at the radius {radii[middle]:.3g} ({attacked.norm}); seconds of all radii.",
            table=_table(found, radii, right, middle),
            wide=True,
        ),
        Section(
            "Accuracy over the radius",
            "Wilson's 95 % intervals are shaded; the thin line is chance.",
            plots.accuracy_curves(curves, chance=1 / len(class_names), x_label=f"radius ({attacked.norm})"),
            wide=True,
        ),
    ]
    drawn = next((name for name in ("pgd", "apgd", "ensemble", "bim", "fgsm") if name in found), next(iter(found)))
    sections.append(_picture(drawn, found[drawn].adversarial[middle], radii[middle], attacked, clean, class_names))
    nearest = {name: one.distance for name, one in found.items() if one.distance is not None}
    if nearest:
        rows: list[tuple[Cell, ...]] = [("attack", "median distance", "smallest", "largest", "found")]
        for name, distance in nearest.items():
            own, reached = distance[right], np.isfinite(distance[right])
            cells = (float(np.median(own)), float(own.min()), float(own[reached].max())) if reached.any() else ("",) * 3
            rows.append((name, *cells, percent(float(reached.mean()))))
        text = f"Of the images that were classified correctly, in the norm {attacked.norm}; infinite if not found."
        sections.append(Section("How near the nearest mistake is", text, table=rows))
    if masking is not None:
        sections.append(_masking_section(masking))
    return Page("Attacks", sections)


def _probabilities(attacked: Any, images: np.ndarray) -> np.ndarray:
    logits = np.asarray(attacked.apply_fn(attacked.variables, jnp.asarray(images)), np.float64)
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def _curve(radii: Sequence[float], right: np.ndarray, success: np.ndarray) -> tuple[np.ndarray, ...]:
    """(radii, accuracy, low, high), from no attack at all to the largest radius."""
    counts = np.array([right.sum(), *(len(right) - success.sum(axis=1))])
    eps = np.array([0.0, *radii])
    if radii[0] == 0:
        eps, counts = eps[1:], counts[1:]
    low, high = wilson_interval(counts, np.full_like(counts, len(right)))
    return eps, counts / len(right), np.asarray(low), np.asarray(high)


def _table(found: Mapping[str, Any], radii: Sequence[float], right: np.ndarray, middle: int) -> list[tuple[Cell, ...]]:
    heading = ("attack", *(f"ε = {radius:.3g}" for radius in radii), "score", "queries", "seconds")
    rows: list[tuple[Cell, ...]] = [heading, ("none", *[percent(float(right.mean()))] * len(radii), "", "0", "")]
    for name, one in found.items():
        shares = [percent(1 - float(share)) for share in one.success.mean(axis=1)]
        score, queries = f"{one.score[middle]:.3g}", f"{one.queries[middle].mean():.0f}"
        rows.append((name, *shares, score, queries, f"{one.seconds:.1f}"))
    return rows


def _picture(
    name: str, adversarial: np.ndarray, eps: float, attacked: Any, clean: np.ndarray, class_names: Sequence[str]
) -> Section:
    images, labels = np.asarray(attacked.images), np.asarray(attacked.labels)
    after = _probabilities(attacked, adversarial)
    chosen = np.flatnonzero(clean.argmax(axis=1) == labels)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).astype(int)] if len(chosen) else [0]
    say = lambda chances: [f"{class_names[row.argmax()]}\n{percent(float(row.max()))}" for row in chances[chosen]]
    figure = plots.adversarial_grid(images[chosen], adversarial[chosen], say(clean), say(after))
    text = f"{name} at ε = {eps:.3g} ({attacked.norm}): image, perturbation (magnified; mid-grey is none), and sum."
    return Section("What it looks like", text, figure, wide=True)


def _masking_section(masking: Any) -> Section:
    rows: list[tuple[Cell, ...]] = [
        ("check", "figure"),
        ("accuracy without an attack", percent(masking.clean_accuracy)),
        ("accuracy under many steps", percent(masking.white_box)),
        ("accuracy under one step", percent(masking.one_step)),
        ("accuracy under random points", percent(masking.random_search)),
        ("accuracy under an attack without gradients", percent(masking.black_box)),
        ("images without a gradient", percent(masking.vanished)),
        ("images whose cross-entropy alone has none", percent(masking.saturated)),
        ("images whose loss rises more along the gradient than at random", percent(masking.gradient_wins)),
    ]
    larger = zip(masking.large_eps, masking.large_eps_accuracy, strict=True)
    rows += [(f"accuracy under many steps at ε = {eps:.3g}", percent(float(share))) for eps, share in larger]
    verdict = "\n\n".join(masking.warnings) if masking.warnings else "Nothing points to masked gradients."
    return Section("Can the gradients be believed?", f"{verdict}\n\n{MASKING}", table=rows)
