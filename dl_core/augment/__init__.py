"""Augmentation and input preparation: pure, batched, compiled with the step that uses it.

Random functions take `(key, images, …)`, deterministic ones `(images, …)`; images are [batch, height, width, channels]
and come back as such. `key` is one key, or one key for each image: see `dl_core.augment.policies.per_image_keys`.
"""

from dl_core.augment.geometric import (
    alternating_flip,
    center_crop,
    corner_crops,
    five_crop,
    flip,
    random_crop,
    random_flip,
    random_translate,
    ten_crop,
)
from dl_core.augment.photometric import denormalize, normalize, to_float
from dl_core.augment.policies import average_over_views, per_image_keys, sequence

__all__ = [
    "alternating_flip",
    "average_over_views",
    "center_crop",
    "corner_crops",
    "denormalize",
    "five_crop",
    "flip",
    "normalize",
    "per_image_keys",
    "random_crop",
    "random_flip",
    "random_translate",
    "sequence",
    "ten_crop",
    "to_float",
]
