"""Augmentation and input preparation: pure, batched, compiled with the step that uses it.

Random functions take `(key, images, …)`, deterministic ones `(images, …)`; images are [batch, height, width, channels]
and come back as such. `key` is one key, or one key for each image: see `dl_core.augment.policies.per_image_keys`.
Masks, boxes and key points move along by the matrices of the same key: see `dl_core.augment.targets`.

The function `resize` is in the module of that name, and so not among those imported here.
"""

from dl_core.augment.affine import (
    compose,
    invert,
    perspective,
    random_affine,
    random_affine_matrices,
    random_perspective_matrices,
    random_rotate,
    random_scale,
    random_shear,
    rotation,
    scaling,
    shear,
    translation,
    warp,
)
from dl_core.augment.audio import (
    change_pitch,
    change_speed,
    random_pitch,
    random_speed,
)
from dl_core.augment.geometric import (
    alternating_flip,
    center_crop,
    corner_crops,
    five_crop,
    flip,
    random_crop,
    random_crop_matrices,
    random_flip,
    random_flip_matrices,
    random_translate,
    ten_crop,
    with_mirror_image,
)
from dl_core.augment.photometric import (
    denormalize,
    normalize,
    to_float,
)
from dl_core.augment.policies import (
    average_over_views,
    per_image_keys,
    sequence,
)
from dl_core.augment.resize import (
    average_over_sizes,
    random_resized_crop,
    random_resized_crop_matrices,
    resize_matrices,
    scale_and_translate,
)
from dl_core.augment.targets import (
    Sample,
    warp_boxes,
    warp_keypoints,
    warp_sample,
)

__all__ = [
    "Sample",
    "alternating_flip",
    "average_over_sizes",
    "average_over_views",
    "center_crop",
    "change_pitch",
    "change_speed",
    "compose",
    "corner_crops",
    "denormalize",
    "five_crop",
    "flip",
    "invert",
    "normalize",
    "per_image_keys",
    "perspective",
    "random_affine",
    "random_affine_matrices",
    "random_crop",
    "random_crop_matrices",
    "random_flip",
    "random_flip_matrices",
    "random_perspective_matrices",
    "random_pitch",
    "random_resized_crop",
    "random_resized_crop_matrices",
    "random_rotate",
    "random_scale",
    "random_shear",
    "random_speed",
    "random_translate",
    "resize_matrices",
    "rotation",
    "scale_and_translate",
    "scaling",
    "sequence",
    "shear",
    "ten_crop",
    "to_float",
    "translation",
    "warp",
    "warp_boxes",
    "warp_keypoints",
    "warp_sample",
    "with_mirror_image",
]
