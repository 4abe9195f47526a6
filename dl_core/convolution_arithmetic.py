"""The arithmetic of stacks of two-dimensional convolution and pooling layers: sizes, parameters, cost, receptive field.

Dumoulin, Visin (2016), "A guide to convolution arithmetic for deep learning", https://arxiv.org/abs/1603.07285; Araujo,
Norris, Sim (2019), "Computing receptive fields of convolutional neural networks", https://distill.pub/2019/computing-receptive-fields.
Everything here is about numbers that describe layers; `dl_core.receptive_field` says the same of any function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dl_core.errors import UsageError, unknown_name

Pair = tuple[int, int]
_PADDINGS = ("valid", "same", "full")


class Layer(NamedTuple):
    """One layer, described; an int stands for the same value along height and width.

    kernel, stride, dilation: in pixels, >= 1.
    padding: "valid" (none), "same" (output ⌈n / stride⌉), "full" (every position that touches the image), pixels on
      every side, (rows, columns) on both sides, or ((top, bottom), (left, right)).
    in_channels, out_channels, groups, bias: of the weights.
    weights: False for pooling, which has none and keeps each channel apart.
    """

    kernel: int | Pair
    stride: int | Pair = 1
    padding: str | int | Pair | tuple[Pair, Pair] = "valid"
    dilation: int | Pair = 1
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1
    bias: bool = True
    weights: bool = True


class Field(NamedTuple):
    """Receptive field of the units of a layer, in pixels of the image, as (height, width).

    size: of one unit's field, where no edge cuts it.
    stride: from a unit's field to its neighbour's.
    start: first row and column of the first unit's field; negative inside the padding.
    """

    size: Pair
    stride: Pair
    start: Pair

    @property
    def centre(self) -> tuple[float, float]:
        """Of the first unit's field, in pixels (height, width); the pixel at the image's corner has its centre at 0."""
        return self.start[0] + (self.size[0] - 1) / 2, self.start[1] + (self.size[1] - 1) / 2


def output_size(layers: Layer | Sequence[Layer], input_size: int | Pair) -> Pair:
    """Height and width of the output (no arrays): ⌊(n + padding - dilation (k - 1) - 1) / stride⌋ + 1 for each layer.

    Args:
      layers: one layer, or several in order.
      input_size: (height, width) in pixels, or one number for both, >= 1.

    Returns:
      (height, width).

    Raises:
      UsageError: a layer's numbers are out of range, or nothing is left of the image.
    """
    size = _pair(input_size)
    for layer in _checked(layers):
        after = tuple(_count(layer, axis, size[axis]) for axis in (0, 1))
        if min(after) < 1:
            raise UsageError(f"{layer} needs a larger input than {size[0]}×{size[1]}: nothing would be left of it")
        size = after
    return size[0], size[1]


def input_sizes(layer: Layer, size: int | Pair) -> tuple[range, range]:
    """All input heights and widths from which a layer makes an output of this size (no arrays).

    Args:
      layer: the layer.
      size: (height, width) of its output, >= 1.

    Returns:
      Possible heights, possible widths; empty ranges where there is none.

    Raises:
      UsageError: the layer's numbers are out of range.
    """
    _checked(layer)
    found = []
    for axis, n in enumerate(_pair(size)):
        most = n * _pair(layer.stride)[axis] + _reach(layer, axis)
        fits = [m for m in range(1, most + 1) if _count(layer, axis, m) == n]
        found.append(range(fits[0], fits[-1] + 1) if fits else range(0))
    return found[0], found[1]


def parameter_count(layers: Layer | Sequence[Layer]) -> int:
    """Trainable numbers: height · width · in / groups · out, and `out` biases, for each layer (no arrays).

    Raises:
      UsageError: a layer's numbers are out of range.
    """
    return sum(_weights(layer) + layer.out_channels * layer.bias for layer in _checked(layers) if layer.weights)


def multiply_adds(layers: Layer | Sequence[Layer], input_size: int | Pair) -> int:
    """Multiplications for one image, each with its addition; as usual, those with padding count too (no arrays).

    Args:
      layers: one layer, or several in order.
      input_size: (height, width) of the image in pixels.

    Returns:
      Σ height · width of the output × weights; pooling costs none.

    Raises:
      UsageError: as for `output_size`.
    """
    size, total = _pair(input_size), 0
    for layer in _checked(layers):
        size = output_size(layer, size)
        total += size[0] * size[1] * _weights(layer) * layer.weights
    return total


def stack_receptive_fields(layers: Layer | Sequence[Layer], input_size: int | Pair | None = None) -> list[Field]:
    """Receptive field after each layer: R_k = R_{k-1} + dilation (F_k - 1) · Π_{i<k} S_i (no arrays).

    Course notes, eq. 31 (which prints R^{[k+1]} on the right, a slip); Araujo et al., eq. 2.

    Args:
      layers: one layer, or several in order.
      input_size: of the image; with it, "same" padding stands where XLA puts it for that size. Without it, the padding
        before the first pixel is taken to be ⌊dilation (k - 1) / 2⌋, which only moves `start`.

    Returns:
      One field for each layer.

    Raises:
      UsageError: a layer's numbers are out of range.
    """
    size, stride, start, fields = [1, 1], [1, 1], [0, 0], []
    pixels = None if input_size is None else _pair(input_size)
    for layer in _checked(layers):
        for axis in (0, 1):
            before = _pads(layer, axis, None if pixels is None else pixels[axis])[0]
            start[axis] -= before * stride[axis]
            size[axis] += (_reach(layer, axis) - 1) * stride[axis]
            stride[axis] *= _pair(layer.stride)[axis]
        pixels = None if pixels is None else output_size(layer, pixels)
        fields.append(Field((size[0], size[1]), (stride[0], stride[1]), (start[0], start[1])))
    return fields


def _pair(value: Any) -> Any:
    """An int as two."""
    return (value, value) if isinstance(value, int) else value


def _reach(layer: Layer, axis: int) -> int:
    """Pixels from the first to the last that the kernel touches."""
    return _pair(layer.dilation)[axis] * (_pair(layer.kernel)[axis] - 1) + 1


def _weights(layer: Layer) -> int:
    height, width = _pair(layer.kernel)
    return height * width * (layer.in_channels // layer.groups) * layer.out_channels


def _pads(layer: Layer, axis: int, n: int | None) -> Pair:
    reach, padding = _reach(layer, axis), layer.padding
    if padding == "valid":
        return 0, 0
    if padding == "full":
        return reach - 1, reach - 1
    if padding == "same":
        stride = _pair(layer.stride)[axis]
        total = reach - 1 if n is None else max((-(-n // stride) - 1) * stride + reach - n, 0)
        return total // 2, total - total // 2
    if isinstance(padding, str):
        raise unknown_name("padding", padding, _PADDINGS)
    return _pair(_pair(padding)[axis])


def _count(layer: Layer, axis: int, n: int) -> int:
    return (n + sum(_pads(layer, axis, n)) - _reach(layer, axis)) // _pair(layer.stride)[axis] + 1


def _checked(layers: Layer | Sequence[Layer]) -> Sequence[Layer]:
    layers = [layers] if isinstance(layers, Layer) else layers
    for layer in layers:
        if min(*_pair(layer.kernel), *_pair(layer.stride), *_pair(layer.dilation)) < 1:
            raise UsageError(f"kernel, stride and dilation are at least 1, got {layer}")
        if layer.groups < 1 or layer.in_channels % layer.groups or layer.out_channels % layer.groups:
            raise UsageError(f"groups must divide both numbers of channels, got {layer}")
        _pads(layer, 0, 1)
    return layers
