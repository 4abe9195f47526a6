"""Optimisers, learning-rate schedules, gradient clipping and weight decay, by name or one by one.

Everything here is an Optax gradient transformation or schedule; where Optax has it, it goes by Optax's name.

    rate = schedule("cosine", learning_rate=0.1, total_steps=1000, warmup_steps=50)
    tx = optimizer("nesterov", rate, momentum=0.9, weight_decay=5e-4, clip_norm=1.0)
    opt_state = tx.init(params)
    updates, opt_state = tx.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)

Batch, mini-batch and stochastic gradient descent (course notes, eq. 17-18) are one optimiser, "sgd": what differs is
how many examples the gradient was averaged over.
"""

from optax import (
    adaptive_grad_clip,
    clip,
    clip_by_global_norm,
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
)

from dl_core.optim.decay import add_lasso, decay_mask
from dl_core.optim.optimizers import OPTIMIZERS, optimizer
from dl_core.optim.rules import scale_by_accumulated_squares, scale_by_norm_rms
from dl_core.optim.schedules import SCHEDULES, inverse_power_decay, reduce_on_plateau, schedule, step_decay, warm_up
from dl_core.optim.transfer import (
    freeze,
    gradual_unfreezing,
    layer_groups,
    layerwise_learning_rates,
    parameter_order,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "adaptive_grad_clip",
    "add_lasso",
    "clip",
    "clip_by_global_norm",
    "constant_schedule",
    "cosine_decay_schedule",
    "decay_mask",
    "exponential_decay",
    "freeze",
    "gradual_unfreezing",
    "inverse_power_decay",
    "layer_groups",
    "layerwise_learning_rates",
    "linear_schedule",
    "optimizer",
    "parameter_order",
    "reduce_on_plateau",
    "scale_by_accumulated_squares",
    "scale_by_norm_rms",
    "schedule",
    "step_decay",
    "warm_up",
]
