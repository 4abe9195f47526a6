"""Losses: functions of (predictions, targets) that return one value per example, for the caller to average.

    one class per example     cross_entropy (class or distribution, smoothing, class weights, mask), focal,
                              softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, negative_log_likelihood,
                              multiclass_hinge_loss; smooth_labels
    independent labels        sigmoid_binary_cross_entropy, sigmoid_focal_loss, hinge_loss (two classes, -1 and 1)
    distributions, sequences  kl_divergence, kl_divergence_with_log_targets, distillation; ctc_loss
    real values               l1, squared_error, l2_loss (half the square), smooth_l1, huber_loss, log_cosh
    values with their noise   gaussian_nll (heteroscedastic), poisson_nll (counts); uncertainty_weighting (of tasks)
    angles                    cosine_angle_loss, von_mises_nll; circular_distance, unit_vector, angle_of
    segmentation              dice, generalized_dice, jaccard, tversky; cross_entropy and focal per pixel
    detection                 detection (class and box), sigmoid_focal_loss, smooth_l1
    GAN, image translation    discriminator, non_saturating_generator, saturating_generator, wasserstein_critic,
                              wasserstein_generator, gradient_penalty, r1_penalty, least_squares_discriminator,
                              least_squares_generator, hinge_discriminator, hinge_generator;
                              reconstruction_l1 (cycle, identity, pix2pix)
    embeddings                contrastive, triplet_margin_loss, info_nce, ntxent (a scalar), cosine_distance

What Optax has is Optax's, under its name, and listed at the top of the file for its task. All values and gradients are
finite for logits up to ±1e4.

Weights and reduction are the caller's: `(weights * loss).sum() / weights.sum()`, `jnp.mean(loss, where=valid)`. That is
safe only while the padded rows hold finite numbers; `masked(loss, predictions, targets, where=valid)` is safe always.
"""

from dl_core.losses.adversarial import (
    discriminator,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
    non_saturating_generator,
    r1_penalty,
    reconstruction_l1,
    saturating_generator,
    wasserstein_critic,
    wasserstein_generator,
)
from dl_core.losses.classification import (
    cross_entropy,
    ctc_loss,
    focal,
    hinge_loss,
    kl_divergence,
    kl_divergence_with_log_targets,
    multiclass_hinge_loss,
    negative_log_likelihood,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from dl_core.losses.contrastive import contrastive, cosine_distance, info_nce, ntxent, triplet_margin_loss
from dl_core.losses.detection import detection
from dl_core.losses.distillation import distillation
from dl_core.losses.masking import masked
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
    poisson_nll,
    smooth_l1,
    squared_error,
    unit_vector,
    von_mises_nll,
)
from dl_core.losses.segmentation import dice, generalized_dice, jaccard, tversky

__all__ = [
    "angle_of",
    "circular_distance",
    "contrastive",
    "cosine_angle_loss",
    "cosine_distance",
    "cross_entropy",
    "ctc_loss",
    "detection",
    "dice",
    "discriminator",
    "distillation",
    "focal",
    "gaussian_nll",
    "generalized_dice",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "hinge_loss",
    "huber_loss",
    "info_nce",
    "jaccard",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l1",
    "l2_loss",
    "least_squares_discriminator",
    "least_squares_generator",
    "log_cosh",
    "masked",
    "multiclass_hinge_loss",
    "negative_log_likelihood",
    "non_saturating_generator",
    "ntxent",
    "poisson_nll",
    "r1_penalty",
    "reconstruction_l1",
    "saturating_generator",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_l1",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "triplet_margin_loss",
    "tversky",
    "uncertainty_weighting",
    "unit_vector",
    "von_mises_nll",
    "wasserstein_critic",
    "wasserstein_generator",
]
