"""Losses: functions of predictions and targets that return one value per example, for the caller to average."""

from dl_core.losses.classification import (
    cross_entropy,
    hinge_loss,
    multiclass_hinge_loss,
    negative_log_likelihood,
    sigmoid_binary_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from dl_core.losses.distillation import distillation
from dl_core.losses.multi_task import uncertainty_weighting
from dl_core.losses.regression import (
    angle_of,
    circular_distance,
    cosine_angle_loss,
    gaussian_nll,
    huber_loss,
    l1,
    l2_loss,
    log_cosh,
    smooth_l1,
    squared_error,
    unit_vector,
    von_mises_nll,
)

__all__ = [
    "angle_of",
    "circular_distance",
    "cosine_angle_loss",
    "cross_entropy",
    "distillation",
    "gaussian_nll",
    "hinge_loss",
    "huber_loss",
    "l1",
    "l2_loss",
    "log_cosh",
    "multiclass_hinge_loss",
    "negative_log_likelihood",
    "sigmoid_binary_cross_entropy",
    "smooth_l1",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "uncertainty_weighting",
    "unit_vector",
    "von_mises_nll",
]
