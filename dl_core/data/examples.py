"""What a data set is: labelled images, in memory or decoded when they are read, in three splits."""

import bisect
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from dl_core.data.images import Resize, UnreadableImage, conform_images, decode_image
from dl_core.errors import UsageError

Labels = Int32[np.ndarray, "m *values"] | Float32[np.ndarray, "m *values"]
OnError = Literal["skip", "raise"]
ImageShape = tuple[int, int, int]
_CHUNK = 256  # images per task when a whole split is decoded: small enough to spread over threads
_SMALL = 64 * 64 * 3  # pixels below which threads only wait for the interpreter's lock
_logger = logging.getLogger("dl_core.data")


@runtime_checkable
class Files(Protocol):
    """Encoded images by number: what `LazyImages` reads. Must pickle, since worker processes get a copy."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Sequence[str | bytes]:
        """Paths or encoded bytes of some images."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in a message: its path, or data set, split and number."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Image files on disk, as `Files`."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> list[str]:
        """The paths of some images."""
        return [self.paths[i] for i in indices]

    def name(self, index: int) -> str:
        """The path of one image."""
        return self.paths[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Several `Files` one after the other."""

    parts: tuple[Files, ...]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))

    def _find(self, index: int) -> tuple[Files, int]:
        which = bisect.bisect_right(self._ends, index)
        return self.parts[which], index - (self._ends[which - 1] if which else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, indices: Sequence[int]) -> list[str | bytes]:
        """Paths or encoded bytes of some images."""
        return [part.read([i])[0] for part, i in map(self._find, indices)]

    def name(self, index: int) -> str:
        """The name of one image."""
        part, i = self._find(index)
        return part.name(i)


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """A sequence of uint8 [h, w, c] images, each decoded when it is read.

    files: where the encoded images are.
    rows: image i of this sequence is files[rows[i]].
    image_shape: (h, w, c) of every image once decoded; 0 stands for "as stored", which only single reads can honour.
    resize: "stretch" or "crop".
    on_error: what a damaged image does to a batch: "skip" puts the next readable image in its place, "raise" stops.
    """

    files: Files
    rows: Int[np.ndarray, " n"]
    image_shape: ImageShape
    resize: Resize = "stretch"
    on_error: OnError = "skip"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._decode(int(index), self.files.read([int(self.rows[index])])[0])

    def _decode(self, index: int, file: str | bytes) -> UInt8[np.ndarray, "h w c"]:
        *size, channels = self.image_shape
        image_size = (size[0], size[1]) if all(size) else None
        name = self.name(index)
        image = decode_image(file, image_size=image_size, channels=channels or None, resize=self.resize, name=name)
        if all(self.image_shape) and image.shape != self.image_shape:
            raise UnreadableImage(name, f"its shape is {image.shape}, not {self.image_shape} as when it was listed")
        return image

    def name(self, index: int) -> str:
        """The file or record that image `index` is read from."""
        return self.files.name(int(self.rows[index]))

    def gather(
        self, indices: Int[np.ndarray, " batch"]
    ) -> tuple[UInt8[np.ndarray, "batch h w c"], Int[np.ndarray, " batch"]]:
        """Some images, and the rows that were really read: under on_error="skip" the next readable row stands in for a
        damaged one.

        Args:
          indices: int [batch] in [0, n).

        Returns:
          uint8 [batch, h, w, c] and int [batch].

        Raises:
          UnreadableImage: a damaged image under on_error="raise", or no image can be read at all.
        """
        read = np.array(indices, np.int64)
        images = np.empty((len(read), *self.image_shape), np.uint8)
        for position, file in enumerate(self.files.read(self.rows[read].tolist())):
            try:
                images[position] = self._decode(int(read[position]), file)
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise
                images[position], read[position] = self._next_readable(int(read[position]), error)
        return images, read

    def _next_readable(self, index: int, error: UnreadableImage) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        for step in range(1, len(self)):
            other = (index + step) % len(self)
            try:
                image = self[other]
            except UnreadableImage:
                continue
            _report_once(error.name, error.reason, self.name(other))
            return image, other
        raise error

    def try_each(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w c"] | UnreadableImage]]:
        """Every image in order, decoded by all cores, with the error in the place of those that cannot be read.

        Yields:
          (index, uint8 [h, w, c] or UnreadableImage).
        """

        def attempt(start: int) -> list[tuple[int, UInt8[np.ndarray, "h w c"] | UnreadableImage]]:
            results = []
            for index, file in enumerate(self.files.read(self.rows[start : start + _CHUNK].tolist()), start):
                try:
                    results.append((index, self._decode(index, file)))
                except UnreadableImage as error:
                    results.append((index, error))
            return results

        threads = os.cpu_count() if np.prod(self.image_shape) > _SMALL else 1
        with ThreadPoolExecutor(threads) as pool:
            for results in pool.map(attempt, range(0, len(self), _CHUNK)):
                yield from results


@functools.lru_cache(maxsize=4096)
def _report_once(name: str, reason: str, substitute: str) -> None:
    _logger.warning("cannot read the image %s (%s); %s takes its place", name, reason, substitute)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images.

    images: uint8 [n, h, w, c], or LazyImages of the same.
    labels: int32 [n], in [0, num_classes); float32 [n] where a value is to be predicted; [n, values] for several.
    """

    images: UInt8[np.ndarray, "n h w c"] | LazyImages
    labels: Labels  # m = n is checked below, with a better message

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise UsageError(f"{len(self.images)} images but {len(self.labels)} labels; give one label per image")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether the images are an array rather than files."""
        return isinstance(self.images, np.ndarray)

    @property
    def image_shape(self) -> ImageShape:
        """(h, w, c) of every image."""
        return self.images.shape[1:] if isinstance(self.images, np.ndarray) else self.images.image_shape

    @property
    def nbytes(self) -> int:
        """Bytes of all the images once decoded."""
        return len(self) * int(np.prod(self.image_shape))

    def name(self, index: int) -> str:
        """What to call an example in a message: its file where it has one, else its number."""
        return f"example {index}" if isinstance(self.images, np.ndarray) else self.images.name(index)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Examples":
        """The examples with these numbers, in this order.

        Args:
          indices: int [m] in [0, n).

        Returns:
          Examples, lazy if these are.
        """
        if isinstance(self.images, np.ndarray):
            return Examples(self.images[indices], self.labels[indices])
        return Examples(dataclasses.replace(self.images, rows=self.images.rows[indices]), self.labels[indices])

    def batch(self, indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        """One batch, decoded.

        Args:
          indices: int [batch] in [0, n).

        Returns:
          {"image": uint8 [batch, h, w, c], "label": int32 or float32 [batch, …]}.

        Raises:
          UnreadableImage: as `LazyImages.gather`.
        """
        if isinstance(self.images, np.ndarray):
            return {"image": self.images[indices], "label": self.labels[indices]}
        images, rows = self.images.gather(indices)
        return {"image": images, "label": self.labels[rows]}

    def arrays(self) -> tuple[UInt8[np.ndarray, "n h w c"], Labels]:
        """All images and labels in memory; row i is what `batch` gives for i, stand-ins for damaged images included.

        Returns:
          uint8 [n, h, w, c], and labels int32 or float32 [n, …].

        Raises:
          UnreadableImage: as `LazyImages.gather`.
        """
        if isinstance(self.images, np.ndarray):
            return self.images, self.labels
        images, rows = np.empty((len(self), *self.image_shape), np.uint8), np.arange(len(self))
        for index, result in self.images.try_each():
            if isinstance(result, UnreadableImage):
                images[[index]], rows[[index]] = self.images.gather(np.array([index]))
            else:
                images[index] = result
        return images, self.labels[rows]

    def decoded(self) -> tuple["Examples", tuple[tuple[str, str], ...]]:
        """The same examples in memory, less those that cannot be read.

        Returns:
          Examples, and (name, reason) of each image left out.

        Raises:
          UnreadableImage: a damaged image under on_error="raise".
        """
        if isinstance(self.images, np.ndarray):
            return self, ()
        images, unreadable = np.empty((len(self), *self.image_shape), np.uint8), []
        kept = np.ones(len(self), bool)
        for index, result in self.images.try_each():
            if not isinstance(result, UnreadableImage):
                images[index] = result
            elif self.images.on_error == "raise":
                raise result
            else:
                kept[index] = False
                unreadable.append((result.name, result.reason))
        return Examples(images if kept.all() else images[kept], self.labels[kept]), tuple(unreadable)

    def conform(self, *, image_size: tuple[int, int] | None, channels: int | None, resize: Resize) -> "Examples":
        """The same examples at another size or number of channels (`images.conform_images`; lazily for lazy ones).

        Args:
          image_size: (height, width) in pixels, or None to leave it.
          channels: 1, 3 or None to leave it.
          resize: "stretch" or "crop".

        Returns:
          Examples.
        """
        if isinstance(self.images, np.ndarray):
            images = conform_images(self.images, image_size=image_size, channels=channels, resize=resize)
            return Examples(images, self.labels)
        height, width, stored = self.images.image_shape
        shape = (*(image_size or (height, width)), channels or stored)
        return Examples(dataclasses.replace(self.images, image_shape=shape, resize=resize), self.labels)


def concatenate(first: Examples, second: Examples) -> Examples:
    """Two sets of examples as one.

    Args:
      first: n examples.
      second: m examples of the same image shape.

    Returns:
      n + m examples, the first ones first; lazy if both are.
    """
    labels = np.concatenate([first.labels, second.labels])
    if isinstance(first.images, np.ndarray) or isinstance(second.images, np.ndarray):
        return Examples(np.concatenate([first.arrays()[0], second.arrays()[0]]), labels)
    files = Joined((first.images.files, second.images.files))
    rows = np.concatenate([first.images.rows, second.images.rows + len(first.images.files)])
    return Examples(dataclasses.replace(first.images, files=files, rows=rows), labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of labelled images.

    name: what it was loaded by.
    class_names: the name of each class; where values are to be predicted, the name of each value.
    train, validation, test: the splits, disjoint.
    unreadable: (file, reason) of every image that was left out.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    @property
    def image_shape(self) -> ImageShape:
        """(h, w, c) of every image."""
        return self.train.image_shape

    @property
    def splits(self) -> dict[str, Examples]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
