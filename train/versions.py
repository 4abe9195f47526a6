"""What a result depends on beside the config: versions of the packages in use, and the machine."""

import platform
from importlib import metadata

import jax

PACKAGES = ("dl_core", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Package and Python versions, the backend and the kind of device."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    device = jax.devices()[0]
    return {**found, "backend": device.platform, "device": f"{jax.device_count()} x {device.device_kind}"}
