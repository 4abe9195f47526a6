"""Layer-wise relevance propagation for any function: the output handed back, layer by layer, to the inputs.

Bach et al. (2015), https://doi.org/10.1371/journal.pone.0130140; Montavon et al. (2019), "Layer-Wise Relevance
Propagation: An Overview"; for attention and LayerNorm Ali et al. (2022), "XAI for Transformers: Better Explanations
through Conservative Propagation", https://arxiv.org/abs/2202.07304.

The model is not changed: its jaxpr is read and grouped into steps (`dl_core.explain.canonical`), it is run once
forwards, and relevance runs the steps backwards, as ordinary JAX operations that can themselves be compiled, mapped and
differentiated.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dl_core.errors import unknown_name
from dl_core.explain import lrp_rules
from dl_core.explain.canonical import Step, relevance_steps
from dl_core.explain.linear_layer import through_linear
from dl_core.explain.program import cotangents, evaluate_all, evaluate_part, read
from dl_core.explain.structure import Structure
from dl_core.explain.target import ApplyFn, Target, check_target, select_target

_UNKNOWN = ("error", "gradient_x_input")


def lrp(
    apply_fn: ApplyFn,
    params: Any,
    inputs: Float[Array, "batch ..."],
    target: Target,
    *,
    rules: lrp_rules.Rules = "epsilon",
    unknown: str = "error",
) -> Float[Array, "batch ..."]:
    """Layer-wise relevance propagation of the explained output.

    What starts at the logits is target's logit itself, so relevance sums to the explained output wherever all rules
    conserve it and layers have no biases. A target function of the logits starts with logits × its gradient.

    * Linear layers share by their rule. BatchNorm (at inference) and other affine operations after one are part of it:
      the scale multiplies the weights, the shift is a bias. Affine operations before one (the normalisation of the
      inputs) are part of it too. Elsewhere (BatchNorm before ReLU in DenseNet) s x + b keeps the share of s x, as b is
      a bias; handed back whole, relevance would be divided by values near zero that it is not proportional to.
    * Activations pass relevance unchanged; the greatest of several takes it all.
    * Sums and average pooling share in proportion to the contributions; moves (reshape, padding, concatenation) move.
    * Of a product, a gate is taken as a constant and the other factor gets everything: softmax weights of attention,
      the 1/σ of LayerNorm and GroupNorm, sigmoids. Where neither factor is recognised as a gate, both get half.

    What biases and constants (class tokens, position embeddings within a linear layer) contribute is absorbed by them;
    how much shows only in the difference of the sum to the output. z⁺ and α-β lose what arrives at a unit without any
    contribution of the sign that they share by, which happens behind skip connections: there the sum falls short.

    Args:
      apply_fn: (params, inputs) -> logits, as in inference.
      params: pytree of everything that apply_fn needs; never changed.
      inputs: the examples to explain.
      target: a class, one class for each example, or a function of the logits; see `explained_output`.
      rules: for linear layers: a rule (`epsilon()`, `gamma(0.5)`, …), the name of one ("epsilon", "gamma",
        "alpha_beta", "z_plus", "w_square", "flat"), the name of a composite ("epsilon_plus", "epsilon_plus_flat",
        "epsilon_alpha2_beta1_flat"), or a mapping to rules from "first" (the first linear layer on every path from the
        inputs), "first_convolution", "convolution", "dense", "default", or the path of a layer or the end of it, as in
        `list_layers`. A layer's name goes before "first", that before the kind of layer; the longest name counts.
      unknown: what to do with a primitive that no rule covers: "error", or "gradient_x_input": each of its inputs gets
        x_i Σ_k ∂z_k/∂x_i R_k / z_k, which conserves where z is homogeneous in x.

    Returns:
      Same shape as the inputs, in units of the explained output.

    Raises:
      UsageError: see `check_target`; an unknown rule or layer; a primitive without a rule.
    """
    if unknown not in _UNKNOWN:
        raise unknown_name("value of unknown", unknown, _UNKNOWN)
    mapping = lrp_rules.as_mapping(rules)
    target = check_target(apply_fn, params, inputs, target)
    return _lrp(Partial(apply_fn), params, inputs, target, mapping, unknown=unknown)


def _relevance_of_inputs(
    apply_fn: ApplyFn, params: Any, inputs: Array, target: Target, rules: dict[str, lrp_rules.Rule], *, unknown: str
) -> Array:
    given = inputs.dtype
    params, inputs = jax.tree.map(_at_least_float32, (params, inputs))
    program = read(apply_fn, params, inputs, open_rules=True)
    structure = Structure(program)
    steps = relevance_steps(structure, unknown=unknown)
    chosen = _choose(steps, rules)
    values = evaluate_all(program, params, inputs)
    logits = values[program.outputs[0]]
    start = logits * jax.grad(lambda outputs: select_target(outputs, target).sum())(logits)
    relevance: dict[int, Array] = {program.outputs[0]: _at_least_float32(start)}
    for i, step in enumerate(steps):
        arriving = [relevance.pop(number, None) for number in step.outputs]
        if all(amount is None for amount in arriving):
            continue
        shares = _hand_back(step, arriving, values, structure, chosen.get(i))
        for number, amount in zip(step.inputs, shares, strict=True):
            relevance[number] = relevance[number] + amount if number in relevance else amount
    found = relevance.get(program.arguments[-1])
    return jnp.zeros(inputs.shape, given) if found is None else found.astype(given)


_lrp = jax.jit(_relevance_of_inputs, static_argnames="unknown")  # rules are arguments: their numbers can be mapped


def _at_least_float32(leaf: Any) -> Any:
    if not jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating):
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _hand_back(
    step: Step,
    arriving: Sequence[Array | None],
    values: dict[int, Any],
    structure: Structure,
    rule: lrp_rules.Rule | None,
) -> list[Array]:
    """The relevance of a step's inputs from that of its outputs."""
    if step.kind == "pass":
        (amount,) = arriving
        assert amount is not None
        return [_summed_to(amount, jnp.shape(values[step.inputs[0]]))]
    if step.linear is not None:
        (amount,) = arriving
        assert amount is not None
        assert rule is not None
        return [through_linear(step, values, structure, rule, amount)]
    inputs = [values[number] for number in step.inputs]

    def run(*xs: Array) -> list[Any]:
        given = evaluate_part(step.operations, dict(zip(step.inputs, xs, strict=True)), values)
        return [given[number] for number in step.outputs]

    outputs, back = jax.vjp(run, *inputs)
    if step.kind != "vjp":  # in proportion: what each input contributes to an output, of the output
        divide = lambda output, amount: amount / lrp_rules.stabilized(output.astype(amount.dtype))
        arriving = [a if a is None else divide(output, a) for output, a in zip(outputs, arriving, strict=True)]
    shares = back(cotangents(outputs, arriving))
    if step.kind == "vjp":
        return [_at_least_float32(share) for share in shares]
    return [step.factor * _at_least_float32(x * share) for x, share in zip(inputs, shares, strict=True)]


def _summed_to(amount: Array, shape: tuple[int, ...]) -> Array:
    """Sums over the axes along which an operand was broadcast."""
    if amount.shape == shape:
        return amount
    axes = [i for i, size in enumerate(amount.shape) if len(shape) != amount.ndim or size != shape[i]]
    return amount.sum(axes).reshape(shape)


def _choose(steps: Sequence[Step], rules: dict[str, lrp_rules.Rule]) -> dict[int, lrp_rules.Rule]:
    """The rule of each linear step."""
    linear = {i: step for i, step in enumerate(steps) if step.linear is not None}
    first = _first(steps)
    names = {name for step in linear.values() for name in _names(step.scope)}
    for name in rules:
        if name not in lrp_rules.PLACES and name not in names:
            raise unknown_name("layer or place of rules", name, names.union(lrp_rules.PLACES))
    chosen: dict[int, lrp_rules.Rule] = {}
    for i, step in linear.items():
        assert step.linear is not None
        kind = "convolution" if step.linear.convolution else "dense"
        depths = _names(step.scope)
        mine = sorted(depths.keys() & rules.keys(), key=lambda name: (depths[name], len(name)), reverse=True)
        places = [*([f"first_{kind}", "first"] if i in first else []), kind, "default"]
        chosen[i] = next((rules[name] for name in [*mine, *places] if name in rules), lrp_rules.Epsilon())
    return chosen


def _names(scope: str) -> dict[str, int]:
    """Every name that a layer, or one around it, may be called by -> how far inside: ends of the path's beginnings."""
    parts = scope.split("/")
    return {"/".join(parts[i:j]): j for j in range(1, len(parts) + 1) for i in range(j) if parts[j - 1]}


def _first(steps: Sequence[Step]) -> set[int]:
    """Linear steps that no other comes before."""
    after_linear: set[int] = set()
    found = set()
    for i in reversed(range(len(steps))):
        step = steps[i]
        behind = not after_linear.isdisjoint(step.inputs)
        if step.linear is not None and not behind:
            found.add(i)
        if behind or step.linear is not None:
            after_linear.update(step.outputs)
    return found
