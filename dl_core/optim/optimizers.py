"""A whole optimiser from one line of configuration: clip, penalise, rescale, decay, step.

The gradient passes through these stages; a clip or penalty of 0 is left out:

    1  clip every coordinate to [-v, v]
    2  clip the norm of the whole gradient             course notes, eq. 24
    3  clip each unit's norm against its weights' norm Brock et al. (2021), https://arxiv.org/abs/2102.06171
    4  add coupled weight decay and lasso              so that what is clipped is the gradient of the data's loss
    5  the optimiser's own rule                        dl_core/optim/rules.py
    6  add decoupled weight decay
    7  multiply by -learning_rate
"""

from collections.abc import Iterator
from typing import Any

import optax
from jaxtyping import Array

from dl_core.errors import UsageError, unknown_name
from dl_core.optim.decay import Which, add_lasso
from dl_core.optim.decay import decay_mask as mask_by_name
from dl_core.optim.options import Number, checked_options, in_interval, option_defaults
from dl_core.optim.rules import RULES

# name -> its own options with their defaults
OPTIMIZERS: dict[str, dict[str, Any]] = {name: option_defaults(rule) for name, rule in RULES.items()}

_SHARED = ("weight_decay", "decay", "decay_mask", "l1", "clip_value", "clip_norm", "clip_adaptive")


def optimizer(
    name: str,
    learning_rate: Number | optax.Schedule,
    *,
    weight_decay: Number | None = None,
    decay: str = "decoupled",
    decay_mask: Which = "kernels",
    l1: Number = 0.0,
    clip_value: Number = 0.0,
    clip_norm: Number = 0.0,
    clip_adaptive: Number = 0.0,
    **options: Any,
) -> optax.GradientTransformation:
    """The optimiser of that name as a chain of Optax transformations.

    Defaults follow torch.optim but for rmsprop, whose ε lies inside the root as in its definition (eps_in_sqrt=False
    gives PyTorch's form), and the decay of everything but adamw, which PyTorch couples (decay="coupled").
    Options, by name (None leaves the default):
      sgd: none. momentum, nesterov: momentum (0.9).
      adagrad: eps (1e-10), initial_accumulator (0). adadelta: rho (0.9), eps (1e-6).
      rmsprop: rho (0.99), eps (1e-8), eps_in_sqrt (True), momentum (0). rmsprop_norm: rho (0.99), eps (1e-8).
      adam, adamw: b1 (0.9), b2 (0.999), eps (1e-8).
      muon: momentum (0.95), ns_steps (5), adam_scale (1), b1 (0.9), b2 (0.999).

    Args:
      name: one of the above.
      learning_rate: >= 0, or a schedule of it.
      weight_decay: λ, >= 0. By default 0.01 for adamw and 0 for the others.
      decay: "decoupled", w shrinks by η λ w beside the step; or "coupled", λ w is added to the gradient.
      decay_mask: which parameters weight_decay and l1 apply to: "kernels" (no biases, no norms), "all", or a function;
        see `dl_core.optim.decay_mask`.
      l1: strength of the lasso, >= 0; always coupled.
      clip_value: largest absolute value of a gradient's coordinate; 0 for none.
      clip_norm: largest norm of the whole gradient; 0 for none.
      clip_adaptive: largest norm of a unit's gradient as a fraction of its weights' norm (0.01 in the paper, which
        spares the last layer); 0 for none.
      **options: as above.

    Returns:
      An Optax transformation; its `update` needs the parameters as third argument where weights decay or clip.

    Raises:
      UsageError: unknown name, an option that this optimiser lacks, or a value out of its range.
    """
    given = checked_options("optimizer", name, RULES, options, _SHARED)
    if not callable(learning_rate):
        in_interval("learning_rate", learning_rate, "[0, inf)")
    if decay not in ("coupled", "decoupled"):
        raise unknown_name("decay", decay, ("coupled", "decoupled"))
    if name == "adamw" and decay == "coupled":
        raise UsageError("adamw is adam with decoupled decay; for the coupled form use optimizer 'adam'")
    if weight_decay is None:
        weight_decay = 0.01 if name == "adamw" else 0.0
    mask_by_name({}, decay_mask)  # refuses an unknown name even where nothing decays

    stages = [*_clipping(clip_value, clip_norm, clip_adaptive)]
    l2 = optax.add_decayed_weights(weight_decay, mask=lambda params: mask_by_name(params, decay_mask))
    decays = _is_on("weight_decay", weight_decay)
    if decays and decay == "coupled":
        stages.append(l2)
    if _is_on("l1", l1):
        stages.append(add_lasso(l1, decay_mask))
    stages.append(RULES[name](**given))
    if decays and decay == "decoupled":
        stages.append(l2)
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def _clipping(value: Number, norm: Number, adaptive: Number) -> Iterator[optax.GradientTransformation]:
    if _is_on("clip_value", value):
        yield optax.clip(value)
    if _is_on("clip_norm", norm):
        yield optax.clip_by_global_norm(norm)
    if _is_on("clip_adaptive", adaptive):
        yield optax.adaptive_grad_clip(adaptive)


def _is_on(option: str, value: Number) -> bool:
    """Whether a stage is asked for. A strength that is an array may be traced, and is."""
    in_interval(option, value, "[0, inf)")
    return isinstance(value, Array) or value > 0
