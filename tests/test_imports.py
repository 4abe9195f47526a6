"""Importing the packages is free of side effects."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import importlib, pkgutil
import dl_core, models, train
from jax._src import xla_bridge
for package in (dl_core, models, train):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            assert not xla_bridge.backends_are_initialized(), f"{module.name} computes when it is imported"
"""


def test_no_import_starts_a_device():
    """`jax.distributed.initialize` must come first, and the user may still choose a platform."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
