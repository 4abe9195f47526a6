"""Strides of named feature maps, from shapes alone."""

import pytest

import models

PYRAMID = {"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}


@pytest.mark.parametrize(
    ("name", "shape", "strides"),
    [
        ("resnet18", (224, 224, 3), PYRAMID),
        ("resnet18", (65, 97, 3), PYRAMID),  # odd sides
        ("inception_v3", (299, 299, 3), PYRAMID),  # maps of 147, 71, 35, 17 and 8 pixels
        ("resnet20_cifar", (32, 32, 3), {"stem": 1, "stage1": 1, "stage2": 2, "stage3": 4}),
        ("lenet5", (28, 28, 1), {"stage1": 2, "stage2": 4}),
        ("mlp", (28, 28, 1), {}),
    ],
)
def test_strides_are_those_of_the_architecture_whatever_the_borders(name, shape, strides):
    found = models.feature_strides(models.create(name, num_classes=2), shape)
    assert found == strides
    assert list(found) == list(strides)  # the order of computation
