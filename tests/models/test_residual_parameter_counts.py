"""Parameter counts of the residual families, as published or as counted by hand; nothing is computed."""

import jax
import jax.numpy as jnp
import pytest

import models

IMAGENET, CIFAR = (224, 1000), (32, 10)  # image size, classes


@pytest.mark.parametrize(
    ("name", "form", "published"),
    [
        ("wide_resnet50_2", IMAGENET, 68_883_240),  # torchvision
        ("wide_resnet101_2", IMAGENET, 126_886_696),
        ("resnext50_32x4d", IMAGENET, 25_028_904),
        ("resnext101_32x8d", IMAGENET, 88_791_336),
        ("resnext101_64x4d", IMAGENET, 83_455_272),
        ("resnext101_32x4d", IMAGENET, 44_177_704),  # timm
        ("resnext29_8x64d_cifar", CIFAR, 34_426_698),  # Xie et al. (2017): 34.4M, 68.1M
        ("resnext29_16x64d_cifar", CIFAR, 68_155_210),
        ("wrn_28_10", CIFAR, 36_479_194),  # Zagoruyko and Komodakis (2016): 36.5M, 8.9M, 11.0M, 2.7M, 17.2M
        ("wrn_40_4", CIFAR, 8_949_210),
        ("wrn_16_8", CIFAR, 10_961_370),
        ("wrn_16_4", CIFAR, 2_748_890),
        ("wrn_22_8", CIFAR, 17_158_106),
        # A norm's scale and offset are as many as BatchNorm's; so are a standardised convolution's gain and bias.
        ("resnet50_gn", IMAGENET, 25_557_032),  # timm
        ("resnet50_gn_ws", IMAGENET, 25_557_032),
        ("resnet20_cifar_gn_ws", CIFAR, 269_722),
        ("nf_resnet26", IMAGENET, 15_995_176),  # timm
        ("nf_resnet50", IMAGENET, 25_557_032),
        ("nf_resnet101", IMAGENET, 44_549_160),
        ("nf_resnet20_cifar", CIFAR, 272_483),
        ("nf_resnet56_cifar", CIFAR, 855_797),
        ("nf_resnet110_cifar", CIFAR, 1_730_768),
    ],
)
def test_parameter_count_is_the_published_one(name, form, published):
    size, num_classes = form
    model = models.create(name, num_classes=num_classes)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published
