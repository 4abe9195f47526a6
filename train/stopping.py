"""When to stop: the three forms of early stopping, as they run beside the training loop.

A budget, a loss that hardly changes any more, and a validation loss that no longer falls. Their states are a few
numbers, kept in every checkpoint, so that a resumed run stops where the unbroken one would.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dl_core import regularization
from dl_core.regularization import EarlyStopping


class Stopping(NamedTuple):
    """The rules in force and what they have seen.

    rules, states: by name.
    budget_seconds: of training, over all restarts; 0 for none.
    reason: why training stops, empty while it goes on.
    """

    rules: dict[str, EarlyStopping]
    states: dict[str, Any]
    budget_seconds: float
    reason: str = ""

    def after_interval(self, *, step: int, loss: float, seconds: float) -> "Stopping":
        """What the rules say of the training loss of an interval, and of the time it took in all."""
        states = dict(self.states)
        if "small update" in self.rules:
            states["small update"] = self.rules["small update"].update(states["small update"], step=step, loss=loss)
        stopping = self._replace(states=states)
        if self.budget_seconds and seconds >= self.budget_seconds:
            return stopping._replace(reason=f"the budget of {self.budget_seconds:g} seconds is spent")
        return stopping._with_reason()

    def after_validation(self, validation_loss: float) -> "Stopping":
        """What the rules say of a validation."""
        states = dict(self.states)
        if "validation" in self.rules:
            rule = self.rules["validation"]
            states["validation"] = rule.update(states["validation"], validation_loss=validation_loss)
        return self._replace(states=states)._with_reason()

    def _with_reason(self) -> "Stopping":
        reasons = {
            "small update": "the training loss hardly changes any more",
            "validation": "the validation loss has stopped falling",
        }
        stops = [reasons[name] for name, state in self.states.items() if bool(state.stop)]
        return self._replace(reason=self.reason or "; ".join(stops))

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        leaves = {name: [np.asarray(x).item() for x in jax.tree.leaves(state)] for name, state in self.states.items()}
        return {"states": leaves, "reason": self.reason}

    def restored(self, stored: dict[str, Any]) -> "Stopping":
        """These rules with the states that `to_json` kept."""
        states = {
            name: jax.tree.map(
                lambda fresh, value: jnp.asarray(value, fresh.dtype),
                state, jax.tree.unflatten(jax.tree.structure(state), stored["states"][name]),
            )
            for name, state in self.states.items()
        }  # fmt: skip
        return self._replace(states=states, reason=stored["reason"])


def early_stopping(options: Any) -> Stopping:
    """The rules that `config.early_stopping` switches on.

    Args:
      options: `patience`, `min_delta`, `small_update`, `small_update_patience`, `budget_seconds`; 0 is off.
    """
    rules = {}
    if options.small_update:
        rules["small update"] = regularization.small_update(
            options.small_update, patience=options.small_update_patience
        )
    if options.patience:
        rules["validation"] = regularization.validation(options.patience, min_delta=options.min_delta)
    return Stopping(rules, {name: rule.init() for name, rule in rules.items()}, options.budget_seconds)
