"""The pages on a regression: predicted against true values, and where the errors are."""

import numpy as np

from dl_core import plots
from train.report.classification import first_kernels
from train.report.diagnosis import diagnose
from train.report.pages import Page, RunRecord, Section
from train.report.summary import run_sections, summary_rows, unreadable_section
from train.report.training import training_page

MOST_MISTAKES = 20


def regression_pages(
    record: RunRecord, predictions: np.ndarray, errors: np.ndarray, *, period: float | None
) -> list[Page]:
    """Every page on a finished run of a regression.

    Args:
      record: the run.
      predictions: of the test split, in units of its labels, float [n].
      errors: absolute ones, float [n].
      period: 360 for angles in degrees, None for values.

    Returns:
      Pages: result, training (if there is a history), test, data and run.
    """
    name = record.class_names[0]
    text = f"{len(record.labels):,} test examples; predicted: {name}."
    result = [Section("In short", text, table=[("", ""), *summary_rows(record.summary)])]
    pages = [Page("Result", result)]
    if record.history:
        verdict = diagnose(record.history, measured_alike=record.summary)
        result.append(Section(f"Verdict: {verdict.label}", verdict.text))
        pages.append(training_page(record.history, verdict))
    return [
        *pages,
        Page("Test", _test_sections(record, predictions, errors, period)),
        Page("Data", [_counts(record), unreadable_section(record)]),
        Page("Run", run_sections(record)),
    ]


def _test_sections(
    record: RunRecord, predictions: np.ndarray, errors: np.ndarray, period: float | None
) -> list[Section]:
    name, unit = record.class_names[0], "" if period is None else "°"
    text = "Each point is a test image; on the line, the prediction is right."
    if period is not None:
        text += " A prediction is drawn within half a turn of the true angle, so nothing wraps around."
    figure = plots.predicted_against_true(record.labels, predictions, name=name, period=period)
    sections = [Section("Predicted against true", text, figure)]
    if period is not None:
        text = "Mean absolute error in degrees, by the true angle (clockwise from the right, as on the screen)."
        sections.append(Section("Error by direction", text, plots.error_by_angle(record.labels, errors)))
    worst = np.argsort(-errors, kind="stable")[:MOST_MISTAKES]
    captions = [f"true {record.labels[i]:.4g}{unit}\npredicted {predictions[i]:.4g}{unit}" for i in worst]
    images = np.stack([record.images[i] for i in worst])
    sections.append(Section("Largest errors", "", plots.image_grid(images, captions, columns=4)))
    kernels = first_kernels(record.variables, channels=record.images.shape[-1])
    if kernels is not None:
        text = "Weights of the first convolution; zero is mid-grey, one scale for all."
        sections.append(Section("First-layer filters", text, plots.filters(kernels)))
    return sections


def _counts(record: RunRecord) -> Section:
    rows = [(split, sum(counts.values())) for split, counts in record.class_balance.items()]
    return Section("Examples", table=[("split", "examples"), *rows])
