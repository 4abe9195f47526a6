"""Deep learning for computer vision as pure functions: losses, metrics, explanations, attacks, augmentation and data.

Everything here takes arrays and parameter pytrees and returns arrays; nothing here imports `models` or `train`.
"""

__version__ = "0.1.0"
