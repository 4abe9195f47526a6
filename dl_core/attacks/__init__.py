"""Adversarial attacks: functions of `(apply_fn, params, images, labels)` that change images, never parameters.

`apply_fn(params, images)` gives the logits [batch, classes] as in inference and takes images in `bounds`: a
normalisation belongs inside of it. So `eps` and distances are in the units of the pixels.

With gradients: `fgsm`, `iterative_gradient`, `bim`, `pgd`, `momentum_pgd`, `apgd` stay within eps; `deepfool`,
`carlini_wagner`, `ddn`, `fab` look for the nearest example; `universal_perturbation` is one change for all images.
Without: `square` asks for scores, `boundary` and `hop_skip_jump` for decisions, `spatial` turns and shifts, `surrogate`
trains a network of its own, `random_search` is what every attack must beat. A number to be trusted: `robust_accuracy`,
beside `check_gradient_masking`. Defences: `adversarial_images` and `trades_loss` for training, `detection_scores`, and
`certify`.

Attack models that are yours, or whose owner agreed, to learn what they withstand before somebody else does.
"""

from dl_core.attacks.apgd import apgd
from dl_core.attacks.boundary import boundary
from dl_core.attacks.carlini_wagner import carlini_wagner
from dl_core.attacks.ddn import ddn
from dl_core.attacks.deepfool import deepfool
from dl_core.attacks.detection import (
    DetectionQuality,
    DetectionScores,
    detection_quality,
    detection_scores,
    detection_threshold,
)
from dl_core.attacks.ensemble import RobustAccuracy, robust_accuracy
from dl_core.attacks.evading import evading
from dl_core.attacks.evaluate import (
    AccuracyCurve,
    DistanceSummary,
    SuccessRate,
    accuracy_curve,
    attack_score,
    curve_from_distances,
    distance_summary,
    success_rate,
)
from dl_core.attacks.fab import fab
from dl_core.attacks.gradient import fgsm
from dl_core.attacks.hardening import adversarial_images, trades_loss
from dl_core.attacks.hop_skip_jump import hop_skip_jump
from dl_core.attacks.iterative import iterative_gradient
from dl_core.attacks.masking import MaskingReport, check_gradient_masking
from dl_core.attacks.projected import bim, momentum_pgd, pgd
from dl_core.attacks.random_search import random_search
from dl_core.attacks.result import AttackResult
from dl_core.attacks.smoothing import Certificate, SmoothedPrediction, certified_accuracy, certify, smoothed_predict
from dl_core.attacks.spatial import spatial
from dl_core.attacks.square import square
from dl_core.attacks.squeezing import straight_through
from dl_core.attacks.surrogate import SurrogateResult, surrogate, transfer
from dl_core.attacks.universal import (
    FoolingRate,
    UniversalPerturbation,
    apply_perturbation,
    fooling_rate,
    universal_perturbation,
)

__all__ = [
    "AccuracyCurve",
    "AttackResult",
    "Certificate",
    "DetectionQuality",
    "DetectionScores",
    "DistanceSummary",
    "FoolingRate",
    "MaskingReport",
    "RobustAccuracy",
    "SmoothedPrediction",
    "SuccessRate",
    "SurrogateResult",
    "UniversalPerturbation",
    "accuracy_curve",
    "adversarial_images",
    "apgd",
    "apply_perturbation",
    "attack_score",
    "bim",
    "boundary",
    "carlini_wagner",
    "certified_accuracy",
    "certify",
    "check_gradient_masking",
    "curve_from_distances",
    "ddn",
    "deepfool",
    "detection_quality",
    "detection_scores",
    "detection_threshold",
    "distance_summary",
    "evading",
    "fab",
    "fgsm",
    "fooling_rate",
    "hop_skip_jump",
    "iterative_gradient",
    "momentum_pgd",
    "pgd",
    "random_search",
    "robust_accuracy",
    "smoothed_predict",
    "spatial",
    "square",
    "straight_through",
    "success_rate",
    "surrogate",
    "trades_loss",
    "transfer",
    "universal_perturbation",
]
