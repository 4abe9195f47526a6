"""The pages on a classifier."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dl_core import plots
from dl_core.metrics import (
    auroc,
    average_precision,
    classification_summary,
    confusion_matrix,
    precision_recall_curve,
    reliability_bins,
    roc_curve,
    wilson_interval,
)
from dl_core.metrics.accumulator import AnyArray
from dl_core.metrics.calibration import ReliabilityBins
from dl_core.metrics.curves import PrecisionRecallCurve, RocCurve
from dl_core.plots.confusion import MOST_WITH_NUMBERS
from train.report.diagnosis import diagnose
from train.report.pages import Cell, Page, RunRecord, Section
from train.report.summary import percent, run_sections, summary_rows, unreadable_section
from train.report.training import training_page

MOST_CURVES = 100
MOST_MISTAKES = 20
MOST_CONFUSED_PAIRS = 10
MOST_ROWS_UNFOLDED = 40
LONGEST_CAPTION = 14  # letters below an image of the grid


def classification_pages(record: RunRecord) -> list[Page]:
    """Every page on a finished run of a classifier.

    Args:
      record: the run.

    Returns:
      Pages: result, training (if there is a history), test (if there are examples), data and run.
    """
    tested = len(record.labels) > 0
    scores = classification_summary(record.labels, record.logits) if tested else {}
    summary = {**record.summary, **{f"test_{name}": value for name, value in scores.items()}}
    examples = f"{len(record.labels):,} test examples, {len(record.class_names)} classes."
    result = [Section("In short", examples, table=[("", ""), *summary_rows(summary)])]
    pages = [Page("Result", result)]
    if record.history:
        verdict = diagnose(record.history, num_classes=len(record.class_names), measured_alike=record.summary)
        result.append(Section(f"Verdict: {verdict.label}", verdict.text))
        pages.append(training_page(record.history, verdict))
    if tested:
        pages.append(Page("Test", _test_sections(record)))
    return [*pages, Page("Data", _data_sections(record)), Page("Run", run_sections(record))]


class _Measures(NamedTuple):
    """Of the test split; the last four of each class against the rest, for the classes that are ranked."""

    probabilities: Float[AnyArray, "n classes"]
    matrix: Int[AnyArray, "classes classes"]
    bins: ReliabilityBins
    roc: RocCurve
    precision_recall: PrecisionRecallCurve
    areas: Float[AnyArray, " ranked"]
    average_precisions: Float[AnyArray, " ranked"]


@jax.jit
def _measure(labels: Int[Array, " n"], logits: Float[Array, "n classes"], ranked: Int[Array, " ranked"]) -> _Measures:
    """Compiled as one: dozens of small compilations would take longer than everything else in a report."""
    probabilities = jax.nn.softmax(logits, axis=1)
    positive, scores = labels[:, None] == ranked[None], probabilities[:, ranked]
    return _Measures(
        probabilities,
        confusion_matrix(labels, probabilities.argmax(axis=1), num_classes=logits.shape[1]),
        reliability_bins(labels, probabilities),
        jax.vmap(roc_curve, in_axes=1)(positive, scores),
        jax.vmap(precision_recall_curve, in_axes=1)(positive, scores),
        auroc(positive, scores, average=None),
        average_precision(positive, scores, average=None, skip_undefined=True),
    )


def _test_sections(record: RunRecord) -> list[Section]:
    names, labels = record.class_names, np.asarray(record.labels, np.int32)
    support = np.bincount(labels, minlength=len(names))
    ranked = np.sort(np.argsort(-support, kind="stable")[:MOST_CURVES])
    measures = jax.tree.map(np.asarray, _measure(labels, np.asarray(record.logits, np.float32), ranked))
    many = len(names) > MOST_WITH_NUMBERS
    sections = [
        Section(
            "Confusion matrix",
            f"{'' if many else 'Numbers are examples. '}The depth of colour is the share of the true class.",
            plots.confusion_matrix(measures.matrix, names),
            wide=many,
        ),
        Section(
            "Calibration",
            "Points are shares of right answers with 95 % intervals; thick lines are the gaps to the mean confidence.",
            plots.reliability_diagram(*measures.bins),
        ),
        *_curve_sections(measures, ranked, names),
        Section(
            "Per class",
            "With 95 % Wilson intervals; area under the ROC curve and average precision against all other classes.",
            table=_class_table(measures, names),
            wide=True,
            folded=len(names) > MOST_ROWS_UNFOLDED,
        ),
        _mistakes(record.images, labels, measures.probabilities, names),
    ]
    pairs = _confused_pairs(measures.matrix, names)
    if len(pairs) > 1:
        sections.append(Section("Most frequent confusions", table=pairs))
    kernels = first_kernels(record.variables, channels=record.images.shape[-1])
    if kernels is not None:
        text = "Weights of the first convolution; zero is mid-grey, one scale for all."
        sections.append(Section("First-layer filters", text, plots.filters(kernels)))
    return sections


def _curve_sections(measures: _Measures, ranked: np.ndarray, names: Sequence[str]) -> list[Section]:
    """One curve for each ranked class; of two classes the second says all."""
    chosen = slice(1, None) if len(names) == 2 else slice(None)
    shown = [names[k] for k in ranked[chosen]]
    roc, curve = measures.roc, measures.precision_recall
    rates = list(zip(roc.false_positive_rate[chosen], roc.true_positive_rate[chosen], strict=True))
    points = list(zip(curve.recall[chosen], curve.precision[chosen], strict=True))
    text = "Each class against the rest" if len(names) > 2 else f"Positive: {names[1]}"
    text += f"; the {MOST_CURVES} classes with most examples." if len(names) > MOST_CURVES else "."
    roc_figure = plots.roc_curves(rates, shown, measures.areas[chosen])
    figure = plots.precision_recall_curves(points, shown, measures.average_precisions[chosen])
    return [Section("ROC curves", text, roc_figure), Section("Precision-recall curves", text, figure)]


def _share(hits: int, total: int) -> tuple[str, str]:
    if not total:
        return "—", "—"
    low, high = wilson_interval(hits, total)
    return f"{hits / total:.3f}", f"{low:.2f} – {high:.2f}"


def _class_table(measures: _Measures, names: Sequence[str]) -> list[tuple[Cell, ...]]:
    matrix, all_ranked = measures.matrix, len(measures.areas) == len(names)
    columns = ("class", "examples", "precision", "95 %", "recall", "95 %", "F1")
    rows = [(*columns, "AUROC", "AP") if all_ranked else columns]
    for k, name in enumerate(names):
        hits, predicted, actual = (int(count) for count in (matrix[k, k], matrix[:, k].sum(), matrix[k].sum()))
        f1 = f"{2 * hits / (predicted + actual):.3f}" if predicted + actual else "—"
        row = (name, actual, *_share(hits, predicted), *_share(hits, actual), f1)
        areas = (measures.areas[k], measures.average_precisions[k]) if all_ranked else ()
        rows.append((*row, *("—" if np.isnan(area) else f"{area:.4f}" for area in areas)))
    return rows


def _confused_pairs(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[Cell, ...]]:
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED_PAIRS]
    pairs = [
        (row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[row, column]
    ]
    rows = [(names[r], names[c], int(wrong[r, c]), percent(wrong[r, c] / matrix[r].sum())) for r, c in pairs]
    return [("true", "predicted", "examples", "of its class"), *rows]


def _mistakes(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Section:
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    confidence = probabilities.max(axis=1)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    heading = "Most confident mistakes"
    if not worst.size:
        return Section(heading, "No test example was misclassified.")
    short = [name if len(name) <= LONGEST_CAPTION else f"{name[: LONGEST_CAPTION - 1]}…" for name in names]
    between = "\n→ " if max(map(len, short)) > 4 else " → "
    captions = [f"{short[labels[i]]}{between}{short[predictions[i]]}\n{100 * confidence[i]:.1f} %" for i in worst]
    text = f"{len(wrong):,} of {len(labels):,} were misclassified. True → predicted, and its probability."
    return Section(heading, text, plots.image_grid(np.stack([images[i] for i in worst]), captions, columns=4))


def first_kernels(variables: Any, *, channels: int) -> np.ndarray | None:
    """The kernels of the first convolution: rank 4, more than one pixel, as many input channels as the images have.

    Args:
      variables: pytree of the model's parameters.
      channels: of the images.

    Returns:
      Float [height, width, channels, out_channels], or None where no such leaf exists.
    """
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    found = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in leaves
        if np.ndim(leaf) == 4 and leaf.shape[0] * leaf.shape[1] > 1 and leaf.shape[2] == channels
    ]
    # "Conv_10" comes after "Conv_2".
    natural = lambda item: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item[0])]
    return np.asarray(min(found, key=natural)[1], np.float32) if found else None


def _data_sections(record: RunRecord) -> list[Section]:
    splits = list(record.class_balance)
    counts = np.array([[record.class_balance[split][name] for split in splits] for name in record.class_names], int)
    rows = [(name, *map(int, row)) for name, row in zip(record.class_names, counts, strict=True)]
    rows.append(("all", *map(int, counts.sum(axis=0))))
    text = ""
    if splits and counts[:, 0].min() > 0:
        ratio = counts[:, 0].max() / counts[:, 0].min()
        text = f"In the {splits[0]} split the commonest class has {ratio:.2f} times as many examples as the rarest."
    elif splits:
        empty = [name for name, row in zip(record.class_names, counts, strict=True) if not row[0]]
        text = f"Without any example in the {splits[0]} split: {', '.join(empty)}."
    folded = len(rows) > MOST_ROWS_UNFOLDED
    balance = Section("Examples of each class", text, table=[("class", *splits), *rows], folded=folded)
    return [balance, unreadable_section(record)]
