"""Handwritten digits that come with scikit-learn: 1797 grey images of 8×8, ten classes, no download.

Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49 (its test part). Every pixel counts the ink in a 4×4 block: 0 … 16, here 0 … 255.
"""

from typing import Any

import numpy as np

from dl_core.data.examples import Examples
from dl_core.data.parts import Parts


def load_digits(argument: str = "", **_: object) -> Parts:
    """The digits as one part, to be split.

    Args:
      argument: not used.

    Returns:
      Parts with "train" alone: uint8 [1797, 8, 8, 1], labels int32 [1797].
    """
    from sklearn.datasets import load_digits as bundled  # here, because the import takes most of a second

    digits: Any = bundled()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Parts(tuple("0123456789"), {"train": Examples(images, digits.target.astype(np.int32))})
