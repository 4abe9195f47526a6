"""Are the explanations any good? Tests of faithfulness, of place, of stability, and of dependence on the model.

Functions of `(apply_fn, params, inputs, target, attributions, …)`, or of an explanation as a function
`explain(apply_fn, params, inputs, target) -> attributions`, that give one value for each example; the caller averages.
`compare_methods` makes one table of them, with explanations beside it that know nothing of the model.
"""

from dl_core.explain.evaluate.comparison import (
    METRICS,
    Comparison,
    Summary,
    compare_methods,
    comparison_rows,
    summarize,
)
from dl_core.explain.evaluate.completeness import Completeness, completeness
from dl_core.explain.evaluate.deletion_insertion import (
    PerturbationCurve,
    area_over_curve,
    perturbation_curve,
    random_order_curve,
)
from dl_core.explain.evaluate.infidelity import gaussian_noise, infidelity, square_removal
from dl_core.explain.evaluate.masks import area_share
from dl_core.explain.evaluate.parameter_layers import parameter_layers
from dl_core.explain.evaluate.pointing_game import pointing_game
from dl_core.explain.evaluate.randomization import (
    RandomizationTest,
    data_randomization_test,
    randomization_test,
    randomize,
)
from dl_core.explain.evaluate.relevance_accuracy import relevance_mass_accuracy, relevance_rank_accuracy
from dl_core.explain.evaluate.sensitivity_n import sensitivity_n
from dl_core.explain.evaluate.similarity import Similarity, compare_attributions, spearman, structural_similarity
from dl_core.explain.evaluate.stability import Stability, stability

__all__ = [
    "METRICS",
    "Comparison",
    "Completeness",
    "PerturbationCurve",
    "RandomizationTest",
    "Similarity",
    "Stability",
    "Summary",
    "area_over_curve",
    "area_share",
    "compare_attributions",
    "compare_methods",
    "comparison_rows",
    "completeness",
    "data_randomization_test",
    "gaussian_noise",
    "infidelity",
    "parameter_layers",
    "perturbation_curve",
    "pointing_game",
    "random_order_curve",
    "randomization_test",
    "randomize",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "sensitivity_n",
    "spearman",
    "square_removal",
    "stability",
    "structural_similarity",
    "summarize",
]
