"""The contact sheet of augmentations."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from dl_core.augment import to_float
from dl_core.data.scenes import scene_examples
from dl_core.errors import UsageError
from dl_core.plots import augmentation


@pytest.mark.slow
def test_every_operation_is_drawn_at_five_strengths_in_a_small_file():
    images, _ = scene_examples(0, 1, size=40, max_objects=4, first=37)
    figure = augmentation.contact_sheet(to_float(images)[0])
    assert len(figure.axes) == 5 * (len(augmentation.OPERATIONS) + 1)
    file = io.BytesIO()
    figure.savefig(file, dpi=90)
    assert file.tell() < 300_000


def test_own_operations_are_drawn_with_their_strengths():
    darker = lambda images, at: images * at[:, None, None, None]
    figure = augmentation.contact_sheet(jnp.ones((4, 4, 1)), {"darker": (darker, (1, 0.75, 0.5, 0.25, 0))})
    assert isinstance(figure, Figure)
    shown = [float(axes.get_images()[0].get_array().max()) for axes in figure.axes]
    np.testing.assert_allclose(shown, [1, 0.75, 0.5, 0.25, 0])
    assert [axes.get_xlabel() for axes in figure.axes] == ["1", "0.75", "0.5", "0.25", "0"]


def test_another_number_of_strengths_is_refused(annotations_off):
    with pytest.raises(UsageError, match="five strengths for each operation, got 2 for 'darker'"):
        augmentation.contact_sheet(jnp.ones((4, 4, 1)), {"darker": (lambda images, at: images, (1, 0.5))})
    with pytest.raises(UsageError, match="at least one operation"):
        augmentation.contact_sheet(jnp.ones((4, 4, 1)), {})
