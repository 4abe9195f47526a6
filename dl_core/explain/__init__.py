"""Explanations: functions of `(apply_fn, params, inputs, target)` that say what a prediction rests on.

`apply_fn(params, inputs)` gives the logits [batch, classes] as in inference, and `params` is whatever pytree it needs,
so everything here can be compiled, mapped over inputs, targets or stacked params, differentiated and sharded.

    saliency, gradient_x_input, smooth_grad                              what a small change would do
    integrated_gradients, expected_gradients, blur_integrated_gradients  that, along a path from nothing to the input
    grad_cam and its kin, attention_rollout and its kin                  where a layer looks; layers go by their names
    guided_backprop, deconvnet, lrp                                      signals sent back by other rules
    occlusion, shapley_exact, shapley_sampling, kernel_shap              what an absence would do
    nearest_examples, tsne, pca, isomap                                  how a layer arranges the examples
    activation_maximization, top_patches                                 what a unit likes best

Whether to believe them: `dl_core.explain.evaluate`.
"""

from dl_core.explain import evaluate, lrp_rules
from dl_core.explain.activation_maximization import ActivationMaximum, activation_maximization
from dl_core.explain.attention import attention_relevance, attention_rollout, gradient_rollout
from dl_core.explain.blur_path import blur_integrated_gradients, blurred
from dl_core.explain.cam import grad_cam, grad_cam_plus_plus, guided_grad_cam, layer_cam, score_cam
from dl_core.explain.embedding import Embedding, NeighbourCheck, isomap, neighbour_check, pca
from dl_core.explain.expected_gradients import expected_gradients
from dl_core.explain.gradients import gradient_x_input, reduce_channels, saliency
from dl_core.explain.guided import deconvnet, guided_backprop
from dl_core.explain.hierarchical_occlusion import HierarchicalOcclusion, hierarchical_occlusion
from dl_core.explain.kernel_shap import kernel_shap
from dl_core.explain.layer_attribution import (
    from_layer,
    layer_conductance,
    layer_gradient_x_activation,
    layer_integrated_gradients,
    neuron_gradient,
    neuron_integrated_gradients,
    to_neuron,
)
from dl_core.explain.layers import list_layers, run_with_layer, run_with_layers
from dl_core.explain.lrp import lrp
from dl_core.explain.neighbours import NearestExamples, features_of, nearest_examples
from dl_core.explain.occlusion import occlusion, occlusion_scores
from dl_core.explain.path_integration import PathAttribution, integrated_gradients
from dl_core.explain.players import ShapleyValues, patches, superpixels
from dl_core.explain.shapley import shapley_exact, shapley_sampling
from dl_core.explain.smooth_grad import smooth_grad
from dl_core.explain.spatial import default_cam_layer
from dl_core.explain.top_patches import TopPatches, top_patches
from dl_core.explain.tsne import tsne

__all__ = [
    "ActivationMaximum",
    "Embedding",
    "HierarchicalOcclusion",
    "NearestExamples",
    "NeighbourCheck",
    "PathAttribution",
    "ShapleyValues",
    "TopPatches",
    "activation_maximization",
    "attention_relevance",
    "attention_rollout",
    "blur_integrated_gradients",
    "blurred",
    "deconvnet",
    "default_cam_layer",
    "evaluate",
    "expected_gradients",
    "features_of",
    "from_layer",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_rollout",
    "gradient_x_input",
    "guided_backprop",
    "guided_grad_cam",
    "hierarchical_occlusion",
    "integrated_gradients",
    "isomap",
    "kernel_shap",
    "layer_cam",
    "layer_conductance",
    "layer_gradient_x_activation",
    "layer_integrated_gradients",
    "list_layers",
    "lrp",
    "lrp_rules",
    "nearest_examples",
    "neighbour_check",
    "neuron_gradient",
    "neuron_integrated_gradients",
    "occlusion",
    "occlusion_scores",
    "patches",
    "pca",
    "reduce_channels",
    "run_with_layer",
    "run_with_layers",
    "saliency",
    "score_cam",
    "shapley_exact",
    "shapley_sampling",
    "smooth_grad",
    "superpixels",
    "to_neuron",
    "top_patches",
    "tsne",
]
