"""What a loader hands over, before splits are cut and sizes agreed."""

from typing import NamedTuple

from dl_core.data.examples import Examples


class Parts(NamedTuple):
    """The parts that a source of data itself provides.

    class_names: the name of each class; where values are to be predicted, the name of each value.
    splits: "train", and "validation" and "test" where the source has them.
    unreadable: (file, reason) of every image already left out.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Examples]
    unreadable: tuple[tuple[str, str], ...] = ()
