"""How good, how sure, how calibrated: metrics as functions of whole arrays and as mergeable accumulators.

Arguments come in the order (labels, predictions), as in scikit-learn. Both forms share one implementation: an
accumulator's `compute(update(init(), labels, predictions))` is the function of the arrays.
"""

from dl_core.metrics.accumulator import Metric, gathering_metric, mean_metric
from dl_core.metrics.brier_decomposition import brier_decomposition, brier_decomposition_metric
from dl_core.metrics.calibration import (
    brier_score,
    brier_score_metric,
    calibration_error,
    calibration_metric,
    classwise_calibration_error,
    classwise_calibration_metric,
    negative_log_likelihood,
    negative_log_likelihood_metric,
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
from dl_core.metrics.data_bias import data_bias
from dl_core.metrics.distances import (
    Transport,
    jensen_shannon,
    kl_divergence,
    optimal_transport,
    sinkhorn,
    total_variation,
    wasserstein,
)
from dl_core.metrics.fairness import (
    demographic_parity,
    disparate_impact,
    disparate_impact_from_counts,
    equal_opportunity,
    equalized_odds,
    equalized_odds_from_counts,
    predictive_parity,
)
from dl_core.metrics.feature_sets import two_set_metric
from dl_core.metrics.frechet import (
    frechet_bias,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_distance_metric,
)
from dl_core.metrics.group_counts import gaps_from_counts, group_counts, group_counts_metric, rates_from_counts
from dl_core.metrics.group_table import group_table, group_table_from_counts
from dl_core.metrics.image_statistics import image_statistics
from dl_core.metrics.inception_score import inception_score, inception_score_metric
from dl_core.metrics.intervals import Interval, bootstrap_interval, clopper_pearson_interval, wilson_interval
from dl_core.metrics.kernel_distance import kernel_distance, kernel_distance_of_subsets
from dl_core.metrics.manifold import manifold_scores
from dl_core.metrics.memorization import authenticity, nearest_training_examples
from dl_core.metrics.moments import Moments, feature_moments, feature_moments_metric
from dl_core.metrics.overfitting import adjust_augmentation, overfitting_metric, overfitting_r_t, overfitting_r_v
from dl_core.metrics.path_length import lerp, path_length_summary, perceptual_path_length, slerp
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
    "Moments",
    "Transport",
    "accuracy",
    "accuracy_metric",
    "adjust_augmentation",
    "auroc",
    "authenticity",
    "average_precision",
    "balanced_accuracy",
    "binned_curve_metric",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_decomposition_metric",
    "brier_score",
    "brier_score_metric",
    "calibration_error",
    "calibration_metric",
    "circular_mean",
    "circular_mean_absolute_error",
    "circular_mean_absolute_error_metric",
    "circular_mean_metric",
    "class_counts",
    "classification_summary",
    "classwise_calibration_error",
    "classwise_calibration_metric",
    "clopper_pearson_interval",
    "confusion_matrix",
    "confusion_metric",
    "counts_metric",
    "data_bias",
    "demographic_parity",
    "disparate_impact",
    "disparate_impact_from_counts",
    "equal_opportunity",
    "equalized_odds",
    "equalized_odds_from_counts",
    "f1",
    "feature_moments",
    "feature_moments_metric",
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_at_infinity",
    "frechet_distance_metric",
    "gaps_from_counts",
    "gathering_metric",
    "group_counts",
    "group_counts_metric",
    "group_table",
    "group_table_from_counts",
    "image_statistics",
    "inception_score",
    "inception_score_metric",
    "jensen_shannon",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "kl_divergence",
    "lerp",
    "manifold_scores",
    "mean_absolute_error",
    "mean_absolute_error_metric",
    "mean_metric",
    "nearest_training_examples",
    "negative_log_likelihood",
    "negative_log_likelihood_metric",
    "optimal_transport",
    "overfitting_metric",
    "overfitting_r_t",
    "overfitting_r_v",
    "path_length_summary",
    "perceptual_path_length",
    "precision",
    "precision_recall_curve",
    "predictive_parity",
    "r2_score",
    "r2_score_metric",
    "rates_from_counts",
    "recall",
    "reliability_bins",
    "resultant_length",
    "resultant_length_metric",
    "roc_curve",
    "root_mean_squared_error",
    "root_mean_squared_error_metric",
    "sinkhorn",
    "slerp",
    "specificity",
    "total_variation",
    "two_set_metric",
    "wasserstein",
    "wilson_interval",
]
