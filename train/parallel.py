"""The one place where training steps meet devices: meshes, shardings, and compilation with `jit` or `pmap`.

Under `jit` a batch is one global array, so gradients and BatchNorm's statistics are global without any collective in
the model. Axes of the mesh: "data" divides the batch; "fsdp" divides the batch and the parameters; "model" divides the
output features of wide layers. Under `pmap` every device holds all parameters and the step averages over "data".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dl_core.errors import UsageError
from train.state import TrainState

BATCH_AXES = ("data", "fsdp")


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes of a run through `jax.distributed`; does nothing for one process.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: how many processes take part.
      process_id: which of them this is, from 0.
    """
    if num_processes == 1:
        return
    if not coordinator:
        raise UsageError(f"{num_processes} processes need parallel.coordinator, the host:port of process 0")
    if not 0 <= process_id < num_processes:
        raise UsageError(f"parallel.process_id must be in [0, {num_processes}), got {process_id}")
    jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)


def make_mesh(devices: Iterable[jax.Device] | None = None, *, fsdp: int = 1, model: int = 1) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "model", all of type Auto.

    Args:
      devices: all devices by default.
      fsdp: over how many devices the parameters are divided.
      model: over how many devices the features of wide layers are divided.

    Raises:
      UsageError: fsdp × model does not divide the number of devices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    if fsdp < 1 or model < 1 or len(devices) % (fsdp * model):
        raise UsageError(f"parallel.fsdp × parallel.model must divide the {len(devices)} devices, got {fsdp} × {model}")
    shape = (len(devices) // (fsdp * model), fsdp, model)
    # explicit axes, the default, break Linen's dropout and token concatenation
    return jax.make_mesh(shape, (*BATCH_AXES, "model"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def parameter_spec(shape: tuple[int, ...], mesh: Mesh, min_shard_size: int) -> PartitionSpec:
    """How an array of this shape is divided: features over "model", its longest other axis over "fsdp".

    Args:
      shape: of a parameter or of the optimiser's statistic for it.
      mesh: from `make_mesh`.
      min_shard_size: smaller arrays, and vectors, stay whole on every device.
    """
    spec: list[str | None] = [None] * len(shape)
    if len(shape) < 2 or np.prod(shape) < min_shard_size:
        return PartitionSpec()
    if mesh.shape["model"] > 1 and shape[-1] % mesh.shape["model"] == 0:
        spec[-1] = "model"
    if mesh.shape["fsdp"] > 1:
        for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
            if spec[axis] is None and shape[axis] % mesh.shape["fsdp"] == 0:
                spec[axis] = "fsdp"
                break
    return PartitionSpec(*spec)


class CompiledTraining(NamedTuple):
    """The compiled forms of one train step; each returns (state, metrics) and donates the state.

    step: (state, batch).
    indexed_step: (state, data, order [steps of an epoch, batch]): gathers its batch on the device, the row of `order`
        that the step number tells.
    chunk: (state, data, order [steps, batch]): all of these steps in one compiled scan; its metrics are [steps].
    """

    step: Callable[..., Any]
    indexed_step: Callable[..., Any]
    chunk: Callable[..., Any]


class Parallel(NamedTuple):
    """Where arrays lie and how a step is compiled. Made by `make_parallel`."""

    mode: str
    mesh: Mesh
    min_shard_size: int

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that model and step must name: "data" under pmap, None under jit."""
        return "data" if self.mode == "pmap" else None

    @property
    def batch_shards(self) -> int:
        """Into how many equal parts a batch is divided."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def rows(self) -> Callable[[int], slice]:
        """batch size -> the rows of every batch that this process loads."""
        index, count = jax.process_index(), jax.process_count()
        return lambda batch_size: slice(index * batch_size // count, (index + 1) * batch_size // count)

    def sharding(self, *spec: Any) -> NamedSharding:
        """A sharding on the mesh; without arguments, a copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def state_shardings(self, abstract_state: Any) -> Any:
        """A sharding for every leaf of a state given as shapes."""
        return jax.tree.map(
            lambda leaf: self.sharding(*parameter_spec(leaf.shape, self.mesh, self.min_shard_size)), abstract_state
        )

    def create_state(self, create: Callable[[jax.Array], TrainState], key: jax.Array) -> TrainState:
        """The first state, born where it belongs."""
        shardings = self.state_shardings(jax.eval_shape(create, key))
        return self.from_global(jax.jit(create, out_shardings=shardings)(key))

    def from_global(self, tree: Any) -> Any:
        """Global arrays -> what the compiled step takes (under pmap one copy a local device, stacked)."""
        if self.mode == "jit":
            return tree
        local = len(self.mesh.local_devices)
        return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[None], (local, *x.shape)), tree)

    def to_global(self, tree: Any) -> Any:
        """What the compiled step returns -> global arrays."""
        if self.mode == "jit":
            return tree
        return jax.tree.map(lambda x: self.place(np.asarray(x[0])), tree)

    def place(self, array: np.ndarray, *spec: Any) -> jax.Array:
        """A host array that every process holds whole -> a global array."""
        return jax.make_array_from_callback(array.shape, self.sharding(*spec), lambda index: array[index])

    def place_data(self, data: Mapping[str, np.ndarray]) -> Any:
        """A data set that every device holds whole."""
        if self.mode == "pmap":
            local = self.mesh.local_devices
            return jax.tree.map(lambda x: np.broadcast_to(x[None], (len(local), *x.shape)), dict(data))
        return {name: self.place(array) for name, array in data.items()}

    def place_order(self, order: np.ndarray) -> Any:
        """Row numbers [steps, batch], which every process holds whole -> divided over the devices along the batch."""
        if self.mode == "pmap":
            return self._stack(order[:, self.rows(order.shape[1])], axis=1)
        return self.place(order, None, BATCH_AXES)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> Any:
        """This process's rows of a batch -> the global batch, divided over the devices."""
        if self.mode == "pmap":
            return {name: self._stack(array, axis=0) for name, array in batch.items()}
        sharding = self.sharding(BATCH_AXES)
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    def _stack(self, array: np.ndarray, axis: int) -> np.ndarray:
        return np.stack(np.split(array, len(self.mesh.local_devices), axis=axis))

    def metrics(self, tree: Any) -> Any:
        """Metrics of a compiled step -> host arrays, one value a step (waits for the device)."""
        host = jax.device_get(tree if self.mode == "jit" else jax.tree.map(lambda x: x[0], tree))
        return jax.tree.map(np.asarray, host)

    def compile(self, train_step: Callable[..., Any], abstract_state: Any) -> CompiledTraining:
        """Compiles a train step for these devices.

        Args:
          train_step: (state, batch) -> (state, metrics), pure; made with `axis_name` of this object.
          abstract_state: the state, or its shapes, as global arrays.
        """

        def gather_and_step(state: TrainState, data: Any, indices: jax.Array) -> Any:
            batch = {name: array[indices] for name, array in data.items()}
            if self.mode == "jit":
                batch = jax.lax.with_sharding_constraint(batch, self.sharding(BATCH_AXES))
            return train_step(state, batch)

        def indexed_step(state: TrainState, data: Any, order: jax.Array) -> Any:
            return gather_and_step(state, data, order[state.step % len(order)])

        def chunk(state: TrainState, data: Any, order: jax.Array) -> Any:
            return jax.lax.scan(lambda s, indices: gather_and_step(s, data, indices), state, order)

        if self.mode == "pmap":
            devices = self.mesh.local_devices if jax.process_count() == 1 else None
            return CompiledTraining(
                *(
                    jax.pmap(function, axis_name="data", donate_argnums=0, devices=devices)
                    for function in (train_step, indexed_step, chunk)
                )
            )
        state, everywhere = self.state_shardings(abstract_state), self.sharding()
        batch, order = self.sharding(BATCH_AXES), self.sharding(None, BATCH_AXES)

        def jit(function: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
            return jax.jit(function, donate_argnums=0, in_shardings=(state, *inputs), out_shardings=(state, everywhere))

        return CompiledTraining(
            jit(train_step, batch), jit(indexed_step, everywhere, order), jit(chunk, everywhere, order)
        )

    def compile_evaluation(self, evaluate_fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (variables, batch) -> (outputs, sums), the results copied to every device."""
        return jax.jit(evaluate_fn, out_shardings=self.sharding())

    def place_evaluation_batch(self, batch: Mapping[str, np.ndarray]) -> Any:
        """A whole batch that every process holds -> the global batch."""
        return {name: self.place(array, BATCH_AXES) for name, array in batch.items()}


def make_parallel(
    mode: str = "jit", *, devices: int = 0, fsdp: int = 1, model: int = 1, min_shard_size: int = 2**14
) -> Parallel:
    """Chooses the devices and the way to use them.

    Args:
      mode: "jit" or "pmap".
      devices: how many of all devices to use; 0 for all.
      fsdp: over how many devices parameters are divided (jit only).
      model: over how many devices the features of wide layers are divided (jit only).
      min_shard_size: arrays with fewer elements are not divided.

    Raises:
      UsageError: an unknown mode, more devices than there are, or parameters divided under pmap.
    """
    if mode not in ("jit", "pmap"):
        raise UsageError(f"parallel.mode must be 'jit' or 'pmap', got {mode!r}")
    if mode == "pmap" and (fsdp > 1 or model > 1):
        raise UsageError(
            "pmap keeps all parameters on every device: set parallel.fsdp and parallel.model to 1, or use jit"
        )
    available = jax.devices()
    if not 0 <= devices <= len(available):
        raise UsageError(f"parallel.devices must be at most {len(available)}, the devices there are, got {devices}")
    return Parallel(mode, make_mesh(available[: devices or None], fsdp=fsdp, model=model), min_shard_size)
