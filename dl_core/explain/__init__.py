"""Explanations: functions of `(apply_fn, params, inputs, target)` that say what a prediction rests on.

`apply_fn(params, inputs)` gives the logits [batch, classes] as in inference, and `params` is whatever pytree it needs,
so everything here can be compiled, mapped over inputs, targets or stacked params, differentiated and sharded.
"""

from dl_core.explain.gradients import gradient_x_input, saliency
from dl_core.explain.path_integration import PathAttribution, integrated_gradients

__all__ = ["PathAttribution", "gradient_x_input", "integrated_gradients", "saliency"]
