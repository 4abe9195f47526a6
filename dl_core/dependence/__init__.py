"""Which rows and columns of an image each element of each intermediate value depends on, read off a jaxpr."""

from dl_core.dependence.bounds import NOTHING, Value, image_value, independent
from dl_core.dependence.walk import Walk

__all__ = ["NOTHING", "Value", "Walk", "image_value", "independent"]
