"""What may make a labelled set unfair before any network is trained on it, in figures and in plain sentences.

Three of the kinds of data bias that the course notes name can be measured on the set itself, given the group of each
example (a sex, a camera, a hospital; anything that should not matter):

    representation   are the groups there in the shares that they have where the network will be used?
    label            are the labels spread alike over the groups?
    measurement      are the groups' images alike in brightness, contrast, sharpness and size, their features in mean
                     and in what is missing, their annotators in how often they disagree?

A difference is a finding only if it is significant, after Bonferroni's correction for the number of comparisons of its
kind, and of a size that matters: the thresholds are the constants below. A finding is a question to whoever collected
the data, not a verdict: a disease may well be commoner in one group.

The report is made on the host, in float64. For a stream: `gathering_metric(data_bias, capacity, label, group)`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Real, Shaped

from dl_core.errors import UsageError
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.checks import check_classes, check_finite, check_not_empty, check_probabilities, check_same_length
from dl_core.metrics.group_comparisons import (
    GroupDifferences,
    LabelBias,
    Representation,
    group_differences,
    label_bias,
    representation,
)
from dl_core.metrics.group_counts import check_groups
from dl_core.metrics.image_statistics import ImageStatistics, image_statistics

LEAST_RATIO = 0.8  # of shares: four fifths, as in the 80 % rule
SMALL_V = 0.1  # Cramér's V: Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", §7.2
SMALL_DIFFERENCE = 0.2  # standard deviations: Cohen (1988), §2.2
SMALL_MISSING = 0.05  # share of missing values above all examples'
MOST_ROWS = 10  # of classes in a printed table, those that differ most
_CHUNK = 256


class DataBias(NamedTuple):
    """The report; printed, it is Markdown.

    findings: a sentence each; empty where nothing stands out.
    representation: of the groups.
    labels: one for each label that is a class.
    label_values: of labels that are numbers, else None.
    measurement: of images, features and annotations; None where none was given.
    group_names: of the groups.
    """

    findings: tuple[str, ...]
    representation: Representation
    labels: tuple[LabelBias, ...]
    label_values: GroupDifferences | None
    measurement: GroupDifferences | None
    group_names: tuple[str, ...]

    def __str__(self) -> str:
        """The findings, then every figure, as Markdown."""
        return _report(self)


def data_bias(
    labels: Real[AnyArray, "n *columns"] | Bool[AnyArray, "n *columns"],
    groups: Integer[AnyArray, " n"],
    images: Any = None,
    *,
    features: Real[AnyArray, "n *features"] | None = None,
    annotations: Integer[AnyArray, "n annotators"] | None = None,
    population: Float[AnyArray, " groups"] | Sequence[float] | None = None,
    num_groups: int | None = None,
    num_classes: int | None = None,
    group_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    confidence: float = 0.95,
    where: Bool[AnyArray, " n"] | None = None,
) -> DataBias:
    """Differences between the groups of a labelled set in representation, labels and measurement.

        names, groups = np.unique(cameras, return_inverse=True)
        print(data_bias(examples.labels, groups, examples.images, group_names=names))

    Args:
      labels: classes (integers from 0) or numbers (floats), [n], or [n, columns] for several labels.
      groups: the group of each example, in [0, num_groups).
      images: uint8 or float [n, height, width, channels], or a sequence of n images [height, width, channels] of any
        sizes, such as `Examples.images` of every data set; one that cannot be read counts as missing.
      features: other measured values, [n] or [n, features]; nan is missing.
      annotations: classes that several annotators gave, [n, annotators], negative where one gave none. What counts is
        the share of pairs of annotators that disagree.
      population: the groups' shares where the network is meant to be used, adding up to 1; equal shares by default.
      num_groups: at least 2; by default as many as group_names or population have, or else as occur.
      num_classes: by default as many as class_names, or else as occur.
      group_names, class_names, label_names, feature_names: for the report; numbers by default.
      confidence: of each interval by itself; 1 - confidence also bounds the chance of any finding of one kind (shares,
        classes, means, missing values) where groups do not differ.
      where: the rows that count; all by default.

    Returns:
      DataBias.

    Raises:
      UsageError: no examples, shapes that do not match, a class or group out of its range, labels that are nan or
        infinite, infinite features, a population that is not probabilities adding up to 1, names that are not as many
        as what they name, confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    labels, groups = np.asarray(labels), np.asarray(groups)
    optional = {"features": features, "annotations": annotations, "where": where}
    optional = {name: None if array is None else np.asarray(array) for name, array in optional.items()}
    check_same_length(labels=labels, groups=groups, **optional)
    for name, array, dimensions in (
        ("labels", labels, (1, 2)),
        ("groups", groups, (1,)),
        ("features", optional["features"], (1, 2)),
        ("annotations", optional["annotations"], (2,)),
    ):
        if array is not None and (array.ndim not in dimensions or 0 in array.shape[1:]):
            allowed = " or ".join(("[n]", "[n, columns]")[d - 1] for d in dimensions)
            raise UsageError(f"{name} must have shape {allowed}, got {list(array.shape)}")
    kept = np.ones(len(groups), bool) if optional["where"] is None else optional["where"].astype(bool)
    check_not_empty("labels", labels, kept)
    shares = _population(population)
    num_groups = num_groups or _length(group_names) or _length(shares)
    check_groups(groups, num_groups, kept)
    num_groups = num_groups or max(2, int(groups[kept].max()) + 1)
    if num_groups < 2:
        raise UsageError(f"num_groups must be at least 2, got {num_groups}: there must be something to compare")
    shares = np.full(num_groups, 1 / num_groups) if shares is None else shares
    if len(shares) != num_groups:
        raise UsageError(f"population must hold one share for each of {num_groups} groups, got {len(shares)}")
    group_names = _named("group_names", group_names, num_groups, "group")
    group = groups[kept].astype(int)
    member = (group[:, None] == np.arange(num_groups)).astype(float)

    columns = labels[kept].reshape(len(group), -1)
    label_names = _named("label_names", label_names, columns.shape[1], "label")
    by_class, by_value = (), None
    if np.issubdtype(labels.dtype, np.floating):
        check_finite("labels", labels, kept)
        by_value = group_differences(columns.astype(float), member, names=label_names, confidence=confidence)
    else:
        num_classes = num_classes or _length(class_names)
        check_classes("labels", labels, num_classes or 2**31 - 1, kept)
        num_classes = num_classes or int(columns.max()) + 1
        names = _named("class_names", class_names, num_classes, "class")
        by_class = tuple(
            label_bias(
                np.bincount(group * num_classes + column, minlength=num_groups * num_classes).reshape(num_groups, -1),
                name=name, class_names=names, confidence=confidence,
            )
            for name, column in zip(label_names, columns.T.astype(int), strict=True)
        )  # fmt: skip
    measured = _measured(images, optional["features"], optional["annotations"], feature_names, kept)
    bias = DataBias(
        (),
        representation(member.sum(axis=0).astype(int), shares, confidence=confidence),
        by_class,
        by_value,
        group_differences(measured[1], member, names=measured[0], confidence=confidence) if measured[0] else None,
        group_names,
    )
    return bias._replace(findings=_findings(bias, 1 - confidence, given=population is not None))


def _length(sequence: Sequence[Any] | np.ndarray | None) -> int | None:
    return None if sequence is None else len(sequence)


def _population(population: Any) -> np.ndarray | None:
    if population is None:
        return None
    shares = np.asarray(population, float)
    if shares.ndim != 1:
        raise UsageError(f"population must have shape [groups], got {list(shares.shape)}")
    check_probabilities("population", shares[None], distributions=True)
    return shares / shares.sum()


def _named(argument: str, names: Sequence[str] | None, count: int, kind: str) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{kind} {i}" for i in range(count)) if count > 1 or kind != "label" else (kind,)
    if len(names) != count:
        raise UsageError(f"{argument} must hold {count} names, got {len(names)}")
    return tuple(map(str, names))


def _measured(
    images: Any,
    features: np.ndarray | None,
    annotations: np.ndarray | None,
    feature_names: Sequence[str] | None,
    kept: np.ndarray,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values [kept, features] of all that was measured of the examples."""
    names, columns = [], [np.zeros((int(kept.sum()), 0))]
    if images is not None:
        if len(images) != len(kept):
            raise UsageError(f"images must be one for each of the {len(kept)} labels, got {len(images)}")
        values = np.array(_array_statistics(images) if hasattr(images, "ndim") else _file_statistics(images))[kept]
        if (values[:, -1] == values[0, -1]).all():  # one size, as of every array
            values = values[:, :-1]
        names += [*ImageStatistics._fields, "resolution"][: values.shape[1]]
        columns.append(values)
    if features is not None:
        values = features[kept].reshape(int(kept.sum()), -1).astype(float)
        if np.isinf(values).any():
            raise UsageError(
                f"features must be finite, or nan where missing, got {int(np.isinf(values).sum())} infinite"
            )
        names += _named("feature_names", feature_names, values.shape[1], "feature")
        columns.append(values)
    if annotations is not None:
        if not np.issubdtype(annotations.dtype, np.integer):
            raise UsageError(f"annotations must be integers, negative where there is none, got {annotations.dtype}")
        names.append("annotators' disagreement")
        columns.append(_disagreement(annotations[kept])[:, None])
    return tuple(names), np.concatenate(columns, axis=1)


def _array_statistics(images: Shaped[AnyArray, "n height width channels"]) -> np.ndarray:
    if images.ndim != 4:
        raise UsageError(f"images must have shape [n, height, width, channels], got {list(images.shape)}")
    pixels = np.sqrt(np.prod(images.shape[1:3], dtype=float))
    parts = [
        np.stack(image_statistics(np.asarray(images[i : i + _CHUNK])), axis=1) for i in range(0, len(images), _CHUNK)
    ]
    return np.pad(np.concatenate(parts).astype(float), ((0, 0), (0, 1)), constant_values=pixels)


def _file_statistics(images: Any) -> list[list[float]]:
    """Of images of any sizes, one after the other as they are decoded; nan for those that cannot be read."""
    each: Iterator[Any] = (image for _, image in images.try_each()) if hasattr(images, "try_each") else iter(images)
    rows = []
    for image in each:
        if isinstance(image, Exception):
            rows.append([np.nan] * 4)
            continue
        image = np.asarray(image)
        if image.ndim != 3:
            raise UsageError(f"each image must have shape [height, width, channels], got {list(image.shape)}")
        statistics = [float(value[0]) for value in image_statistics(image[None])]
        rows.append([*statistics, float(np.sqrt(image.shape[0] * image.shape[1]))])
    return rows


def _disagreement(annotations: np.ndarray) -> np.ndarray:
    """Per example, the share of pairs of annotators who gave different classes; nan of fewer than two annotators."""
    given = annotations >= 0
    both = given[:, :, None] & given[:, None, :] & ~np.eye(annotations.shape[1], dtype=bool)[None]
    differ = both & (annotations[:, :, None] != annotations[:, None, :])
    pairs = both.sum(axis=(1, 2))
    return np.where(pairs > 0, differ.sum(axis=(1, 2)) / np.maximum(pairs, 1), np.nan)


def _findings(bias: DataBias, risk: float, *, given: bool) -> tuple[str, ...]:
    return (
        *_share_findings(bias, risk, given),
        *_label_findings(bias, risk),
        *_difference_findings(bias.label_values, bias.group_names, risk, "label"),
        *_difference_findings(bias.measurement, bias.group_names, risk, "measurement"),
    )


def _share_findings(bias: DataBias, risk: float, given: bool) -> list[str]:
    part, found = bias.representation, []
    if part.p_value > risk:
        return found
    against = "of the population" if given else "if all groups were equally frequent (no population was given)"
    for k, name in enumerate(bias.group_names):
        near = LEAST_RATIO <= part.ratio[k] <= 1 / LEAST_RATIO
        if not near and not part.low[k] <= part.population[k] <= part.high[k]:
            word = "under" if part.ratio[k] < 1 else "over"
            found.append(
                f"Representation: {name} is {word}-represented: {_percent(part.share[k])} of the examples "
                f"({_percent(part.low[k])} to {_percent(part.high[k])}), {_percent(part.population[k])} {against}."
            )
    return found


def _label_findings(bias: DataBias, risk: float) -> list[str]:
    found = []
    for label in bias.labels:
        if label.p_value > risk / len(bias.labels) or not label.cramers_v >= SMALL_V:
            continue
        k = len(label.difference) - 1 - int(np.round(label.difference[::-1], 9).argmax())  # of equals the last: "yes"
        top, bottom = int(label.highest[k]), int(label.lowest[k])
        gap = _interval(label.difference[k], label.difference_low[k], label.difference_high[k], _points)
        found.append(
            f"Label: {label.name} depends on the group (Cramér's V {label.cramers_v:.2f}). Most of all, "
            f"{label.class_names[k]} is {_percent(label.rate[top, k])} of {bias.group_names[top]} and "
            f"{_percent(label.rate[bottom, k])} of {bias.group_names[bottom]}: {gap} points apart."
        )
    return found


def _difference_findings(part: GroupDifferences | None, groups: Sequence[str], risk: float, kind: str) -> list[str]:
    if part is None:
        return []
    found, comparisons = [], part.mean.size if len(groups) > 2 else len(part.names)  # of two, each is the other's rest
    size = np.where(part.p_value <= risk / comparisons, np.abs(part.standardized), 0.0)
    for j, name in enumerate(part.names):
        k = int(np.round(size[:, j], 9).argmax())
        if size[k, j] >= SMALL_DIFFERENCE:
            more = "higher" if part.standardized[k, j] > 0 else "lower"
            found.append(
                f"{kind.capitalize()}: {name} is {more} in {groups[k]} than elsewhere: {part.mean[k, j]:.3g} on "
                f"average, a difference of {_interval(*_sizes(part, k, j), lambda x: f'{x:.2f}')} standard deviations."
            )
    for j, name in enumerate(part.names):
        for k, group in enumerate(groups):
            excess = part.missing[k, j] - np.nanmin(part.missing[:, j])
            if part.missing_p_value[k, j] <= risk / part.mean.size and excess >= SMALL_MISSING:
                found.append(f"{kind.capitalize()}: {name} is missing in {_percent(part.missing[k, j])} of {group}.")
    return found


def _sizes(part: GroupDifferences, k: int, j: int) -> tuple[float, float, float]:
    """Of a significant difference without its sign, with its interval."""
    low, high = sorted(abs(float(end)) for end in (part.low[k, j], part.high[k, j]))
    return abs(float(part.standardized[k, j])), low, high


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)), ""]


def _report(bias: DataBias) -> str:
    part, names = bias.representation, bias.group_names
    lines = ["## Data bias", "", *(f"- {finding}" for finding in bias.findings)]
    if not bias.findings:
        lines.append("No difference between the groups stands out.")
    lines += ["", "### Representation"]
    lines += _table(
        ("group", "examples", "share (interval)", "population", "ratio"),
        [
            (name, f"{part.total[k]}", _interval(part.share[k], part.low[k], part.high[k], _percent),
             _percent(part.population[k]), f"{part.ratio[k]:.2f}")
            for k, name in enumerate(names)
        ],
    )  # fmt: skip
    lines.append(f"Total variation {part.total_variation:.3f}, chi-square p = {part.p_value:.2g}.")
    for label in bias.labels:
        lines += ["", f"### Label: {label.name}"]
        shown = np.argsort(-np.nan_to_num(label.difference), kind="stable")[:MOST_ROWS]
        rows = [
            (label.class_names[c], *(_percent(rate) for rate in label.rate[:, c]),
             _interval(label.difference[c], label.difference_low[c], label.difference_high[c], _points))
            for c in sorted(shown)
        ]  # fmt: skip
        lines += _table(("class", *names, "difference (interval), points"), rows)
        if len(shown) < len(label.class_names):
            lines.append(f"The {len(shown)} of {len(label.class_names)} classes that differ most.")
        v = _interval(label.cramers_v, label.cramers_v_low, label.cramers_v_high, lambda x: f"{x:.3f}")
        lines.append(
            f"Cramér's V {v}, mutual information {label.mutual_information:.4f} nats, p = {label.p_value:.2g}."
        )
    for title, values in (("Label values", bias.label_values), ("Measurement", bias.measurement)):
        if values is not None:
            lines += ["", f"### {title}"]
            rows = [
                (name, *(
                    f"{values.mean[k, j]:.3g} ± {values.deviation[k, j]:.2g}; {values.standardized[k, j]:+.2f}"
                    + (f"; {_percent(values.missing[k, j])} missing" if values.missing[k, j] > 0 else "")
                    for k in range(len(names))
                ))
                for j, name in enumerate(values.names)
            ]  # fmt: skip
            lines += _table(("", *names), rows)
            lines.append("Mean ± standard deviation; difference from all other examples in standard deviations.")
    return "\n".join(lines)


def _interval(value: Any, low: Any, high: Any, text: Callable[[Any], str]) -> str:
    return "—" if np.isnan(value) else f"{text(value)} ({text(low)} – {text(high)})"
