"""Arrays in, matplotlib Figure out: one house style for reports and notebooks alike.

Figures are made without pyplot: nothing is shown, kept or closed; a notebook displays the returned Figure, and
`figure.savefig(path)` writes it.
"""

from dl_core.plots.activations import activation_functions
from dl_core.plots.attacks import accuracy_curves, adversarial_grid, attack_path, loss_surface
from dl_core.plots.augmentation import contact_sheet
from dl_core.plots.boundary import decision_boundary
from dl_core.plots.calibration import reliability_diagram, reliability_diagrams
from dl_core.plots.confusion import confusion_matrix
from dl_core.plots.embedding import embedding
from dl_core.plots.explanation_quality import perturbation_curves, randomization_curves
from dl_core.plots.explanations import attribution_maps
from dl_core.plots.fairness import group_rates
from dl_core.plots.generative import distance_ladder
from dl_core.plots.images import filters, image_grid
from dl_core.plots.ranking import precision_recall_curves, roc_curves
from dl_core.plots.receptive_field import receptive_fields
from dl_core.plots.regression import error_by_angle, predicted_against_true
from dl_core.plots.segmentation import class_scores, segmentation_maps
from dl_core.plots.training import learning_curves, learning_rate_curve, norms

__all__ = [
    "accuracy_curves",
    "activation_functions",
    "adversarial_grid",
    "attack_path",
    "attribution_maps",
    "class_scores",
    "confusion_matrix",
    "contact_sheet",
    "decision_boundary",
    "distance_ladder",
    "embedding",
    "error_by_angle",
    "filters",
    "group_rates",
    "image_grid",
    "learning_curves",
    "learning_rate_curve",
    "loss_surface",
    "norms",
    "perturbation_curves",
    "precision_recall_curves",
    "predicted_against_true",
    "randomization_curves",
    "receptive_fields",
    "reliability_diagram",
    "reliability_diagrams",
    "roc_curves",
    "segmentation_maps",
]
