"""How good, how sure, how calibrated: metrics as functions of whole arrays and as mergeable accumulators.

Arguments come in the order (labels, predictions), as in scikit-learn. Both forms share one implementation: an
accumulator's `compute(update(init(), labels, predictions))` is the function of the arrays.
"""

from dl_core.metrics.accumulator import Metric, gathering_metric, mean_metric
from dl_core.metrics.calibration import (
    brier_score,
    calibration_error,
    calibration_metric,
    negative_log_likelihood,
    reliability_bins,
)
from dl_core.metrics.classification import (
    accuracy,
    accuracy_metric,
    balanced_accuracy,
    class_counts,
    confusion_matrix,
    confusion_metric,
    counts_metric,
    f1,
    precision,
    recall,
    specificity,
)
from dl_core.metrics.classification_report import classification_summary
from dl_core.metrics.curves import (
    auroc,
    average_precision,
    binned_curve_metric,
    precision_recall_curve,
    roc_curve,
)
from dl_core.metrics.intervals import Interval, bootstrap_interval, clopper_pearson_interval, wilson_interval
from dl_core.metrics.regression import (
    circular_mean,
    circular_mean_absolute_error,
    circular_mean_absolute_error_metric,
    circular_mean_metric,
    mean_absolute_error,
    mean_absolute_error_metric,
    r2_score,
    r2_score_metric,
    resultant_length,
    resultant_length_metric,
    root_mean_squared_error,
    root_mean_squared_error_metric,
)

__all__ = [
    "Interval",
    "Metric",
    "accuracy",
    "accuracy_metric",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "binned_curve_metric",
    "bootstrap_interval",
    "brier_score",
    "calibration_error",
    "calibration_metric",
    "circular_mean",
    "circular_mean_absolute_error",
    "circular_mean_absolute_error_metric",
    "circular_mean_metric",
    "class_counts",
    "classification_summary",
    "clopper_pearson_interval",
    "confusion_matrix",
    "confusion_metric",
    "counts_metric",
    "f1",
    "gathering_metric",
    "mean_absolute_error",
    "mean_absolute_error_metric",
    "mean_metric",
    "negative_log_likelihood",
    "precision",
    "precision_recall_curve",
    "r2_score",
    "r2_score_metric",
    "recall",
    "reliability_bins",
    "resultant_length",
    "resultant_length_metric",
    "roc_curve",
    "root_mean_squared_error",
    "root_mean_squared_error_metric",
    "specificity",
    "wilson_interval",
]
