"""DenseNet: strides and every layer's view of all the layers before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models import densenet  # noqa: F401

TINY = {"growth_rate": 4, "block_sizes": (2, 2), "stem_channels": 8}


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("densenet121", 224, [(112, 64), (56, 256), (28, 512), (14, 1024), (7, 1024)]),
        ("densenet100_cifar", 32, [(32, 24), (32, 216), (16, 300), (8, 342)]),
    ],
)
def test_maps_have_the_sizes_of_the_paper(name, size, shapes):
    images = jnp.zeros((1, size, size, 3))
    model = models.create(name, num_classes=5)
    maps = jax.eval_shape(lambda: models.features(model, model.init(jax.random.key(0), images), images))
    assert maps.pop("penultimate").ndim == 2
    names = ["stem", *(f"stage{i}" for i in range(1, len(shapes)))]
    assert {key: (value.shape[1], value.shape[3]) for key, value in maps.items()} == dict(
        zip(names, shapes, strict=True)
    )


def test_a_block_hands_its_input_on_unchanged():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    model = models.create("densenet121", num_classes=5, **TINY, stem="cifar")
    maps = models.features(model, model.init(jax.random.key(0), images), images)
    assert maps["stage1"].shape[-1] == 8 + 2 * 4
    np.testing.assert_array_equal(maps["stage1"][..., :8], maps["stem"])


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"stem": "cifarr"}, (32, 32), "unknown stem 'cifarr'; did you mean 'cifar'"),
        ({"compression": 1.5}, (32, 32), r"compression must lie in \(0, 1\], got 1.5"),
        ({}, (28, 64), "at least 29×29, got 28×64"),
        ({"stem": "cifar", "block_sizes": (1, 1, 1)}, (3, 8), "at least 4×4, got 3×8"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, shape, words):
    with pytest.raises(UsageError, match=words):
        jax.eval_shape(
            models.create("densenet121", num_classes=5, **fields).init, jax.random.key(0), jnp.zeros((1, *shape, 3))
        )


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 29), ("cifar", 8)])
def test_the_smallest_image_passes(stem, smallest):
    model = models.create("densenet121", num_classes=5, growth_rate=2, block_sizes=(1, 1, 1, 1), stem=stem)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, smallest, smallest, 3)))
    assert logits.shape == (1, 5)
