"""Eyes: the description is frozen, the iris lies where the gaze says, and nuisances do not tell the gaze."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.data import describe, load
from dl_core.data.scenes import description_hash, key_of
from dl_core.data.scenes.eyes import IRIS, REACH, eye_examples, eye_value, render_eyes, sample_eyes
from dl_core.errors import UsageError
from dl_core.losses import circular_distance

SMALL = {"image_size": 16, "target": "lid_opening"}
render = jax.jit(render_eyes, static_argnums=1)


def clean(n=32, *, style, **fields):
    """Eyes with a dark iris on light skin, wide open, sharp and without noise, and the fields given."""
    eyes = sample_eyes(key_of(0), 0, n, style=style)
    fields = {"iris_level": 25, "skin": 100, "lid_opening": 100, "blur": 0, "noise": 0, "brightness": 100, **fields}
    return eyes._replace(**{name: jnp.full(n, value) for name, value in fields.items()})


def test_a_frozen_description_has_the_hash_it_always_had():
    """Computed with JAX 0.10.2: a release that changes the random numbers shows here."""
    assert (
        description_hash(sample_eyes(key_of(0), 0, 3))
        == "6dd3ff72fcbc530ffbf81a326d437c12e43d6cecd3b3a78449a368cfab15c5ba"
    )


def test_an_eye_depends_on_its_index_and_not_on_how_many_are_drawn():
    ten, three = sample_eyes(key_of(1), 0, 10), sample_eyes(key_of(1), 4, 3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[4:7], b), ten, three)


@pytest.mark.parametrize("style", ["plain", "photographic"])
def test_the_dark_of_pupil_and_iris_lies_in_the_direction_of_the_gaze(style):
    """Read off the image without a network: the centroid of what is dark within the eyeball."""
    eyes = clean(style=style, displacement=100, tilt=0, pupil=60)
    images = np.asarray(render(eyes, 96), np.float32).mean(axis=-1) / 255
    centres = (np.arange(96) + 0.5) * 1024 / 96
    read = []
    for image, x, y, width in zip(images, eyes.x, eyes.y, eyes.width, strict=True):
        across, down = ((centres - float(place)) / float(width) for place in (x, y))
        ball = across[None, :] ** 2 + down[:, None] ** 2 < (REACH + 0.6 * IRIS) ** 2
        dark = ball * np.clip(0.35 - image, 0, None)
        read.append(np.rad2deg(np.arctan2((dark.sum(1) * down).sum(), (dark.sum(0) * across).sum())))
    error = np.asarray(circular_distance(np.array(read, np.float32), eye_value(eyes, "gaze")))
    assert np.median(error) < 6  # chance is 90; the lids' shadow and lashes pull it upwards
    assert error.max() < 30


def test_the_lids_open_as_far_as_the_label_says():
    def eyeball(opening):
        images = np.asarray(render(clean(style="plain", lid_opening=opening, skin=0), 64), np.float32)
        return (images.mean(axis=-1) > 200).sum()  # the white, on dark skin

    sizes = [eyeball(opening) for opening in (50, 65, 80, 100)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.5 * sizes[0]


def test_the_styles_differ_and_share_their_geometry():
    eyes = clean(style="plain")
    plain, photo = (np.asarray(render(eyes._replace(style=jnp.full(32, k)), 32), float) for k in (0, 1))
    assert np.abs(plain - photo).mean() > 5
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(plain, photo, strict=True)]
    assert np.median(correlation) > 0.6


def test_no_other_field_tells_the_gaze():
    eyes = sample_eyes(key_of(3), 0, 4096)
    gaze = np.deg2rad(eye_value(eyes, "gaze"))
    for name, values in eyes._asdict().items():
        if name != "gaze":
            for wave in (np.cos(gaze), np.sin(gaze)):
                assert abs(np.corrcoef(np.asarray(values, float), wave)[0, 1]) < 0.07, name  # 4.5 standard errors
    for share in (np.cos(gaze), np.sin(gaze)):
        assert abs(share.mean()) < 0.05


def test_eyes_are_a_data_set_of_values():
    data = load("eyes", num_train=40, num_validation=8, num_test=8, **SMALL)
    assert data.class_names == ("lid opening",)
    assert data.image_shape == (16, 16, 3)
    assert data.train.labels.dtype == np.float32
    assert 0.5 <= data.train.labels.min() < data.train.labels.max() <= 1
    assert "lid opening in training: from" in describe(data)
    again = load("eyes", num_train=10, num_validation=8, num_test=8, **SMALL)
    np.testing.assert_array_equal(again.train.labels, data.train.labels[:10])
    np.testing.assert_array_equal(again.test.images, data.test.images)


def test_values_are_divided_in_folds_at_random():
    parts = [load("eyes", num_train=30, num_validation=6, num_test=4, **SMALL, folds=3, fold=fold) for fold in range(3)]
    held_out = np.concatenate([part.validation.labels for part in parts])
    assert [len(part.validation) for part in parts] == [12] * 3
    np.testing.assert_array_equal(np.sort(held_out), np.sort(np.concatenate([p.labels for p in _pool(parts[0])])))


def _pool(data):
    return data.train, data.validation


def test_eyes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="unknown style 'plane'; did you mean 'plain'"):
        eye_examples(0, 1, style="plane")
    with pytest.raises(UsageError, match="unknown target"):
        load("eyes", target="angle")
    with pytest.raises(UsageError, match="at least 1"):
        eye_examples(0, 0)
