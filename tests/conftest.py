"""What every test runs under: eight virtual devices, no silent rank promotion, annotations enforced, compiled once."""

import os
import pathlib

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
# small networks are compiled far more often than they are run; programs in processes of their own compile as users' do
jax.config.update("jax_disable_most_optimizations", True)

install_import_hook(["dl_core", "models", "train"], "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_this_file_only():
    """Every compiled program holds memory and some mappings of it, of which a process may have 65,530 on Linux."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real data sets, where there is one: the environment variable DL_CORE_TEST_DATA names it."""
    folder = pathlib.Path(os.environ.get("DL_CORE_TEST_DATA", "no-such-folder"))
    if not folder.is_dir():
        pytest.skip("real data not available: set DL_CORE_TEST_DATA to a folder that holds it")
    return folder


@pytest.fixture
def annotations_off():
    """As a user runs it: shapes that the annotations would refuse reach the functions' own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
