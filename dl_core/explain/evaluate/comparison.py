"""One table: several explanations of one model, every test of their quality, beside explanations that know nothing.

"random" (noise), "|x|" (the size of the input) and "edges" (its differences between neighbours) never look at the
model. Where a method does no better than they do, its score says nothing about the method; that they are perfectly
stable, and that |x| may win the pointing game on bright objects, says something about the tests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dl_core.errors import UsageError, unknown_name
from dl_core.explain.evaluate.completeness import completeness
from dl_core.explain.evaluate.deletion_insertion import perturbation_curve
from dl_core.explain.evaluate.explanation import Explain, explain_with
from dl_core.explain.evaluate.features import Baselines, PatchSize, as_baselines, number_features
from dl_core.explain.evaluate.infidelity import gaussian_noise, infidelity, square_removal
from dl_core.explain.evaluate.masks import area_share, check_masks
from dl_core.explain.evaluate.parameter_layers import choose_layers
from dl_core.explain.evaluate.pointing_game import pointing_game
from dl_core.explain.evaluate.randomization import data_randomization_test, randomize
from dl_core.explain.evaluate.relevance_accuracy import relevance_mass_accuracy, relevance_rank_accuracy
from dl_core.explain.evaluate.sensitivity_n import sensitivity_n
from dl_core.explain.evaluate.stability import stability
from dl_core.explain.pieces import Progress
from dl_core.explain.target import ApplyFn, Target, check_target
from dl_core.loops import choose_driver

METRICS = {  # name -> whether more is better
    "deletion": False,
    "insertion": True,
    "sensitivity-n": True,
    "infidelity": False,
    "completeness gap": False,
    "max-sensitivity": False,
    "randomisation": False,
    "pointing game": True,
    "mass accuracy": True,
    "rank accuracy": True,
}
OF_MASKS = ("pointing game", "mass accuracy", "rank accuracy")
Explained = Float[Array, "methods batch ..."]
Test = Callable[[Sequence[Explain], Explained], Float[Array, "methods batch"]]
MODEL_FREE = ("random", "edges", "|x|")


class Comparison(NamedTuple):
    """Scores of several explanations.

    scores: method -> metric -> one score for each example; the methods given first, then those of no model.
    higher_is_better: metric -> bool.
    area_share: share of each image inside its mask, what a blind guess scores there; None without masks.
    """

    scores: dict[str, dict[str, Float[np.ndarray, " batch"]]]
    higher_is_better: dict[str, bool]
    area_share: Float[np.ndarray, " batch"] | None


class Summary(NamedTuple):
    """Mean over the examples that have a score (nan is left out), its standard error (nan below two), their number."""

    mean: float
    standard_error: float
    examples: int


def compare_methods(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    methods: Mapping[str, Explain],
    *,
    key: Key[Array, ""],
    masks: Bool[Array | np.ndarray, "batch height width"] | None = None,
    metrics: Sequence[str] | None = None,
    patch_size: PatchSize = 1,
    baselines: Baselines = 0.0,
    n_steps: int | None = None,
    n_samples: int = 50,
    perturb_radius: float = 0.02,
    tolerance: float = 0.0,
    internal_batch_size: int | None = None,
    loop: str = "auto",
    progress: Progress | None = None,
) -> Comparison:
    """The tests of this package for several explanations of one model, on the same inputs with the same random numbers.

    Runs on the host, test by test; not inside of `jit`.

    The tests, one score for each example:

    * "deletion", "insertion": area under the curve of the target's probability (`perturbation_curve`);
    * "sensitivity-n": correlation for n of a quarter of the features;
    * "infidelity": of removed squares, a quarter of the shorter side wide (of Gaussian noise, where inputs are no
      images), normalised and divided by the mean squared change of the output: the share of the change that the
      attributions do not predict in their best scale; 0 is best, 1 is what attributions of 0 have;
    * "completeness gap": |sum of the attributions − change of the output|, in logits;
    * "max-sensitivity": `stability`;
    * "randomisation": |Spearman's correlation| of the foreground with all layers randomised;
    * "pointing game", "mass accuracy", "rank accuracy": with masks.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs.
      inputs: the examples to explain, [batch, height, width, channels] or [batch, features].
      target: what is explained; see `explained_output`.
      methods: name -> (apply_fn, params, inputs, target) -> attributions, see `explain_with`; at least one. "random",
        "|x|" and, for images, "edges" are added.
      key: for all random numbers.
      masks: [batch, height, width], True inside the object.
      metrics: which tests, of METRICS; by default all that can be done, those of masks with masks only.
      patch_size: side of the patches that deletion, insertion and sensitivity-n exchange.
      baselines: what stands for absence: a number, one example, one for each, or "blurred".
      n_steps: points of the curves; see `perturbation_curve`.
      n_samples: random sets of sensitivity-n, and perturbations of infidelity; a fifth as many, and at least one, of
        max-sensitivity.
      perturb_radius: of max-sensitivity, in the units of the inputs.
      tolerance: of the pointing game, in pixels.
      internal_batch_size: most rows that apply_fn is given at once.
      loop: how the loops are driven; see `dl_core.loops`.
      progress: called with (tests done, tests in all).

    Returns:
      Comparison.

    Raises:
      UsageError: no methods, one of a reserved name, an unknown metric, a metric of masks without masks; see the tests.
    """
    check_target(apply_fn, params, inputs, target, differentiable=False)
    if not methods:
        raise UsageError("methods must hold at least one explanation, got none")
    if reserved := [name for name in methods if name in MODEL_FREE]:
        raise UsageError(f"the names {', '.join(MODEL_FREE)} are of explanations added here; rename {reserved}")
    metrics = _chosen_metrics(metrics, masks is not None)
    if masks is not None and inputs.ndim != 4:
        raise UsageError(f"masks need images [batch, height, width, channels], got inputs {list(inputs.shape)}")
    if masks is not None:
        masks = check_masks(masks, *inputs.shape[:3])
    _, num_features = number_features(inputs, patch_size, None)
    baselines = as_baselines(baselines, inputs)
    keys = dict(zip(("random", *METRICS), jax.random.split(key, 1 + len(METRICS)), strict=True))
    loop = choose_driver(loop, params, inputs)  # here, for inside of vmap over the methods nothing can be told of it
    pieces = {"internal_batch_size": internal_batch_size, "loop": loop}
    removal = {"patch_size": patch_size, "baselines": baselines, **pieces}
    model = apply_fn, params, inputs, target
    tests = _tests_of_faithfulness(
        *model, keys, n_steps=n_steps, n=max(1, num_features // 4), n_samples=n_samples, **removal
    )
    tests |= _tests_of_dependence(*model, keys, perturb_radius, max(1, n_samples // 5), loop)
    if masks is not None:
        tests["pointing game"] = _of_each(lambda _, found: pointing_game(found, masks, tolerance=tolerance))
        tests["mass accuracy"] = _of_each(lambda _, found: relevance_mass_accuracy(found, masks))
        tests["rank accuracy"] = _of_each(lambda _, found: relevance_rank_accuracy(found, masks))
    every = {**methods, **_model_free(keys["random"], inputs)}
    explained = jnp.stack([explain_with(explain, *model) for explain in every.values()])
    scores: dict[str, dict[str, Any]] = {name: {} for name in every}
    for done, metric in enumerate(metrics):
        of_methods = np.asarray(tests[metric](list(every.values()), explained))
        for name, of_examples in zip(every, of_methods, strict=True):
            scores[name][metric] = of_examples
        if progress is not None:
            progress(done + 1, len(metrics))
    share = None if masks is None else np.asarray(area_share(masks))
    return Comparison(scores, {metric: METRICS[metric] for metric in metrics}, share)


def summarize(comparison: Comparison) -> dict[str, dict[str, Summary]]:
    """Means over the examples [batch] with their standard errors: method -> metric -> Summary."""
    return {
        name: {metric: _summary(values) for metric, values in scores.items()}
        for name, scores in comparison.scores.items()
    }


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table of a report: a heading (↑ more is better, ↓ less is), then a row "mean ± standard error" a method.

    Args:
      comparison: of `compare_methods`; its scores are [batch].

    Returns:
      Rows of text; with masks, the last gives the share of the area that is inside them.
    """
    heading = ("method", *(f"{metric} {'↑' if up else '↓'}" for metric, up in comparison.higher_is_better.items()))
    rows = [(name, *map(_cell, scores.values())) for name, scores in summarize(comparison).items()]
    if comparison.area_share is not None:
        share = _cell(_summary(comparison.area_share))
        rows.append(
            ("share of the area", *(share if metric in OF_MASKS else "" for metric in comparison.higher_is_better))
        )
    return [heading, *rows]


def _summary(values: Float[np.ndarray, " batch"]) -> Summary:
    known = np.asarray(values, np.float64)[np.isfinite(values)]
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    return Summary(float(known.mean()) if len(known) else np.nan, float(error), len(known))


def _cell(summary: Summary) -> str:
    if not summary.examples:
        return "—"
    error = "" if np.isnan(summary.standard_error) else f" ± {summary.standard_error:.2g}"
    return f"{summary.mean:.3g}{error}"


def _chosen_metrics(metrics: Sequence[str] | None, with_masks: bool) -> list[str]:
    if metrics is None:
        return [metric for metric in METRICS if with_masks or metric not in OF_MASKS]
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if metric in OF_MASKS and not with_masks:
            raise UsageError(f"the metric {metric!r} needs masks=, [batch, height, width] booleans")
    return list(metrics)


def _tests_of_faithfulness(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    keys: Mapping[str, Key[Array, ""]],
    *,
    n_steps: int | None,
    n: int,
    n_samples: int,
    patch_size: PatchSize,
    baselines: Float[Array, "batch ..."],
    internal_batch_size: int | None,
    loop: str,
) -> dict[str, Test]:
    model = apply_fn, params, inputs, target
    pieces = {"internal_batch_size": internal_batch_size, "loop": loop}
    removal = {"patch_size": patch_size, "baselines": baselines, **pieces}
    size = max(1, min(inputs.shape[1:3]) // 4)
    perturb = square_removal(size, baselines) if inputs.ndim == 4 else gaussian_noise()
    perturbed = {"key": keys["infidelity"], "perturb": perturb, "n_perturb_samples": n_samples, **pieces}

    def area_under(mode: str) -> Test:
        return _of_each(lambda _, found: perturbation_curve(*model, found, mode=mode, n_steps=n_steps, **removal).auc)

    def correlation(found: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        key = keys["sensitivity-n"]
        return sensitivity_n(*model, found, key=key, n=n, n_samples=n_samples, **removal)[:, 0]

    def unpredicted(found: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        whole = infidelity(*model, jnp.zeros_like(inputs), **perturbed)
        return infidelity(*model, found, baselines=baselines, normalize=True, **perturbed) / whole

    def gap(found: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        return jnp.abs(completeness(*model, found, baselines=baselines).gap)

    # Mapped over the methods, the model still sees each changed input once: it does not depend on the method.
    at_once = {"sensitivity-n": correlation, "infidelity": unpredicted, "completeness gap": gap}
    return {
        "deletion": area_under("deletion"),
        "insertion": area_under("insertion"),
        **{name: lambda _, explained, test=test: jax.vmap(test)(explained) for name, test in at_once.items()},
    }


def _tests_of_dependence(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    keys: Mapping[str, Key[Array, ""]],
    perturb_radius: float,
    n_samples: int,
    loop: str,
) -> dict[str, Test]:
    """On small changes of the input, and on the model."""
    model = apply_fn, params, inputs, target

    def unlike(explain: Explain, _: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        layers = choose_layers(apply_fn, params, inputs, None)
        others = randomize(params, layers, key=keys["randomisation"])
        return jnp.abs(data_randomization_test(explain, apply_fn, params, others, inputs, target).signed_foreground)

    def change(explain: Explain, _: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        sampled = {"key": keys["max-sensitivity"], "n_perturb_samples": n_samples, "loop": loop}
        return stability(explain, *model, perturb_radius=perturb_radius, **sampled).sensitivity_max

    return {"max-sensitivity": _of_each(change), "randomisation": _of_each(unlike)}


def _of_each(test: Callable[[Explain, Float[Array, "batch ..."]], Float[Array, " batch"]]) -> Test:
    """A test of one explanation, or of its attributions, as one of several."""
    return lambda explains, explained: jnp.stack(list(map(test, explains, explained)))


def _model_free(key: Key[Array, ""], inputs: Float[Array, "batch ..."]) -> dict[str, Explain]:
    explanations = {"random": lambda apply_fn, params, x, target: jax.random.normal(key, x.shape, x.dtype)}
    if inputs.ndim == 4 and min(inputs.shape[1:3]) > 1:
        explanations["edges"] = lambda apply_fn, params, x, target: _edges(x)
    explanations["|x|"] = lambda apply_fn, params, x, target: jnp.abs(x)
    return explanations


def _edges(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Length of the difference between the neighbours of each pixel."""
    return jnp.hypot(*jnp.gradient(images, axis=(1, 2)))
