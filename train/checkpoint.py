"""Checkpoints: save, restore the newest readable one, and find the best. Orbax does the work.

A checkpoint holds the training state and a small JSON record of the host's side (early stopping, seconds so far). The
position in the data needs no record of its own: it is a function of the step.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.state import TrainState

Rank = Callable[[Mapping[str, float]], tuple[float, ...]]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if absent.
      rank: validation metrics -> a tuple, larger for a better model.
      keep: how many of the latest are kept, beside the best.
    """

    def __init__(self, directory: pathlib.Path, *, rank: Rank, keep: int = 2):
        policy = ocp.checkpoint_managers
        self._rank = rank
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(keep), policy.BestN(get_metric_fn=rank, n=1)]
                ),
                best_fn=rank,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, host: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Saves in the background; `wait` or the next save waits for it.

        Args:
          state: global arrays.
          host: JSON record of the host's side.
          metrics: of the validation split at this step.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(dict(host))),
            metrics=dict(metrics),
        )

    def restore(
        self, abstract_state: Any, *, step: int | None = None, warn: Callable[[str], None] = print
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, as (state, host record), or None where there is none.

        Args:
          abstract_state: shapes and shardings of the state.
          step: a certain step instead of the newest.
          warn: called with a message for each checkpoint that cannot be read; such a one is removed.
        """
        steps = [step] if step is not None else sorted(self._manager.all_steps(), reverse=True)
        for candidate in steps:
            try:
                restored = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), host=ocp.args.JsonRestore()
                    ),
                )
                return restored["state"], restored["host"]
            except Exception as error:  # Orbax, TensorStore and JSON each have errors of their own for a damaged file
                if step is not None:
                    raise
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                warn(f"checkpoint of step {candidate} cannot be read ({reason}); falling back to the one before")
                self._manager.delete(candidate)
        return None

    def best_step(self) -> int | None:
        """The step of the best checkpoint by `rank`, or None."""
        ranked = [(self._rank(self._manager.metrics(step)), step) for step in self._manager.all_steps()]
        return max(ranked)[1] if ranked else None

    def latest_step(self) -> int | None:
        """The newest step that was saved, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the directory."""
        self._manager.close()


def abstract_like(tree: Any) -> Any:
    """Shapes, types and shardings of a pytree of arrays, the target of a restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save_weights(directory: pathlib.Path, variables: Any) -> None:
    """Writes the variables of a finished model; an earlier copy is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve(), variables, force=True)


def load_weights(directory: pathlib.Path, abstract_variables: Any) -> Any:
    """Reads what `save_weights` wrote into the shapes given."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.resolve(), abstract_variables)
