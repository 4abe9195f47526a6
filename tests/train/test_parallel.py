"""The same training from one device, eight devices under jit or pmap, divided parameters, and two processes."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from small_runs import random_dataset, small_config

from dl_core.errors import UsageError
from train.parallel import make_mesh, make_parallel, parameter_spec
from train.run import make_feed, prepare

STEPS = 20
# float32 sums in another order: 20 steps of momentum move the parameters 1e-6 apart, and up to 4e-5 where a ReLU
# happened to fall on its other side; a wrong mean, key or statistic moves them by 1e-2
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def parameters_after_training(steps=STEPS, **changes):
    run, state = prepare(small_config(**{"epochs": 100, **changes}), dataset=random_dataset())
    feed, step = make_feed(run, 0), 0
    while step < steps:
        count = min(run.steps_per_epoch - step % run.steps_per_epoch, steps - step)
        state, _ = feed.run(state, step, count, lambda *_: None)
        step += count
    state = run.parallel.to_global(state)
    return jax.tree.map(np.asarray, {"params": state.params, "model_state": state.model_state})


@pytest.fixture(scope="module")
def on_one_device():
    return parameters_after_training(**{"parallel.devices": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel.devices": 8},
        {"parallel.devices": 8, "parallel.mode": "pmap"},
        {"parallel.devices": 8, "parallel.fsdp": 4, "parallel.min_shard_size": 1},
        {"parallel.devices": 8, "parallel.model": 2, "parallel.fsdp": 2, "parallel.min_shard_size": 1},
        {"parallel.devices": 1, "loop": "compiled"},
        {"parallel.devices": 8, "loop": "compiled", "parallel.mode": "pmap"},
        {"parallel.devices": 8, "data.placement": "grain"},
        {"parallel.devices": 8, "data.placement": "grain", "parallel.mode": "pmap"},
    ],
    ids=lambda changes: ",".join(f"{name.split('.')[-1]}={value}" for name, value in changes.items()),
)
def test_twenty_steps_give_the_same_parameters(changes, on_one_device):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), parameters_after_training(**changes), on_one_device
    )


def test_twenty_steps_move_the_parameters_far_more_than_the_tolerance(on_one_device):
    start = parameters_after_training(steps=0, **{"parallel.devices": 1})
    moved = max(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), on_one_device["params"], start["params"]))
    )
    assert moved > 100 * TOLERANCE["atol"]


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
sys.path.insert(0, {here!r})
import numpy as np
from test_parallel import parameters_after_training
tree = parameters_after_training(**{changes!r})
assert jax.process_count() == 2 and jax.device_count() == 8
if jax.process_index() == 0:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    np.savez({output!r}, **{{jax.tree_util.keystr(path): leaf for path, leaf in leaves}})
"""


@pytest.mark.slow  # each process compiles for itself; the tests above compare the same numbers in one process
@pytest.mark.parametrize("placement", ["device", "grain"])
def test_two_processes_on_the_loopback_interface(placement, on_one_device, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = pathlib.Path(__file__).parent
    processes = []
    for process_id in range(2):
        changes = {
            "parallel.coordinator": f"127.0.0.1:{port}", "parallel.num_processes": 2,
            "parallel.process_id": process_id, "data.placement": placement,
        }  # fmt: skip
        script = TWO_PROCESSES.format(here=str(here), changes=changes, output=str(tmp_path / "params.npz"))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parents[1])}
        processes.append(
            subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    with np.load(tmp_path / "params.npz") as stored:
        for path, leaf in jax.tree_util.tree_leaves_with_path(on_one_device):
            np.testing.assert_allclose(stored[jax.tree_util.keystr(path)], leaf, **TOLERANCE)


def test_every_axis_of_the_mesh_is_automatic():
    mesh = make_mesh(fsdp=2, model=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_wide_layers_are_divided_and_small_ones_are_not():
    mesh = make_mesh(fsdp=2, model=4)
    assert parameter_spec((3, 3, 64, 128), mesh, 1024) == PartitionSpec(None, None, "fsdp", "model")
    assert parameter_spec((512, 10), mesh, 1024) == PartitionSpec("fsdp", None)
    assert parameter_spec((512,), mesh, 1) == PartitionSpec()
    assert parameter_spec((8, 8), mesh, 1024) == PartitionSpec()


def test_divided_parameters_really_lie_apart():
    run, state = prepare(
        small_config(**{"parallel.devices": 8, "parallel.fsdp": 8, "parallel.min_shard_size": 1}),
        dataset=random_dataset(),
    )
    whole, own = run.parallel, 0
    for leaf in jax.tree.leaves(state.params):
        own += leaf.addressable_shards[0].data.size < leaf.size
    assert whole.batch_shards == 8
    assert own > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "pjit"}, "must be 'jit' or 'pmap', got 'pjit'"),
        ({"devices": 99}, "at most 8, the devices there are, got 99"),
        ({"fsdp": 3}, "must divide the 8 devices, got 3 × 1"),
        ({"mode": "pmap", "fsdp": 2}, "pmap keeps all parameters"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(options, words):
    with pytest.raises(UsageError, match=words):
        make_parallel(**options)
