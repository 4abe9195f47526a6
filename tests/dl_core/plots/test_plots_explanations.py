"""Attributions as pictures: zero is white, the scale is symmetric and written, nonsense is refused."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from dl_core.plots import attribution_maps
from dl_core.plots.explanations import SIGNED


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 6, 8, 3)).astype(np.float32)


def test_every_method_has_a_cell_with_its_own_symmetric_scale_below(images):
    maps = {"small": np.full((2, 6, 8), -0.001, np.float32), "large_one": np.full((2, 6, 8, 3), 7.0, np.float32)}
    figure = attribution_maps(images, maps, ["cat\n99 %", "dog"])
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 * 3
    pictures = [axes.images[0] for axes in figure.axes if axes.get_title("left")]
    for picture, largest in zip(pictures, [0.001, 21.0] * 2, strict=True):  # three channels of 7 add up
        np.testing.assert_allclose(picture.get_clim(), (-largest, largest), rtol=1e-6)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("± 0.001") == 2
    assert texts.count("± 21") == 2
    assert "cat\n99 %" in texts
    assert {axes.get_title("left") for axes in figure.axes} == {"", "small", "large one"}


def test_zero_is_white_and_signs_have_different_colours():
    np.testing.assert_allclose(SIGNED(0.5)[:3], 1, atol=0.01)  # of 256 colours the middle lies between two
    against, for_it = np.array(SIGNED(0.0)), np.array(SIGNED(1.0))
    assert against[2] > against[0]  # blue
    assert for_it[0] > for_it[2]  # orange


def test_many_methods_go_on_in_further_rows(images):
    figure = attribution_maps(images, {f"m{i}": np.ones((2, 6, 8)) for i in range(7)}, columns=4)
    assert len(figure.axes) == 2 * 8
    boxes = [axes.get_position() for axes in figure.axes]
    for i, one in enumerate(boxes):
        assert 0 <= one.y0 < one.y1 <= 1
        for other in boxes[:i]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


def test_an_empty_map_and_one_that_is_not_finite_are_drawn(images):
    zero, broken = np.zeros((2, 6, 8), np.float32), np.full((2, 6, 8), np.nan, np.float32)
    figure = attribution_maps(images, {"zero": zero, "broken": broken})
    figure.canvas.draw()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("± 0") == 2
    assert texts.count("not finite") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attributions": {}}, "at least one method"),
        ({"attributions": {"cam": np.ones((2, 3, 4))}}, r"'cam' are \(2, 3, 4\)|upsampled first"),
        ({"attributions": {"flat": np.ones((2, 6))}}, r"must be \[n, height, width\]"),
        ({"captions": ["one"]}, "one caption for each of the 2 images"),
        ({"columns": 1}, "at least 2"),
    ],
)
def test_nonsense_is_refused(images, change, words):
    arguments = {"attributions": {"one": np.ones((2, 6, 8))}, **change}
    with pytest.raises(UsageError, match=words):
        attribution_maps(images, arguments.pop("attributions"), **arguments)
