"""Parameter counts, exactly as published or as counted by hand from the papers' tables; nothing is computed.

Every name of the registry is traced here, in bfloat16: logits and parameters have to be float32 all the same.
"""

import pathlib

import jax
import jax.numpy as jnp
import pytest

import models

NAMES = models.list_models()  # before any test registers its own
IMAGENET, CIFAR, DIGITS = (224, 224, 3), (32, 32, 3), (28, 28, 1)


def count(name, shape, num_classes, **fields):
    model = models.create(name, num_classes=num_classes, dtype="bfloat16", **fields)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((1, num_classes), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("alexnet", 61_100_840),  # torchvision
        ("vgg11", 132_863_336),
        ("vgg11_bn", 132_868_840),
        ("vgg13", 133_047_848),
        ("vgg13_bn", 133_053_736),
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
        ("vgg19", 143_667_240),
        ("vgg19_bn", 143_678_248),
        ("googlenet", 13_004_888),  # with its auxiliary heads
        ("densenet121", 7_978_856),
        ("densenet161", 28_681_000),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("vit_b_16", 86_567_656),
        ("vit_b_32", 88_224_232),
        ("vit_l_16", 304_326_632),
        ("vit_l_32", 306_535_400),
        ("resnet18_v2", 11_687_720),  # timm
        ("resnet34_v2", 21_795_880),
        ("resnet50_v2", 25_549_352),
        ("resnet101_v2", 44_541_480),
        ("resnet152_v2", 60_185_128),
        ("mobilenet_v1", 4_231_976),
        ("mobilenetv1_100", 4_231_976),
        ("vit_ti_16", 5_717_416),
        ("vit_s_16", 22_050_664),
        ("alexnet_2012", 60_965_224),  # from the papers' tables
        ("zfnet", 62_357_608),
        ("googlenet_2014", 13_378_280),
        ("wide_resnet50_2", 68_883_240),  # torchvision
        ("wide_resnet101_2", 126_886_696),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("resnext101_32x4d", 44_177_704),  # timm
        # A norm's scale and offset are as many as BatchNorm's; so are a standardised convolution's gain and bias.
        ("resnet50_gn", 25_557_032),  # timm
        ("resnet50_gn_ws", 25_557_032),
        ("nf_resnet26", 15_995_176),  # timm
        ("nf_resnet50", 25_557_032),
        ("nf_resnet101", 44_549_160),
    ],
)
def test_count_at_1000_classes_is_the_published_one(name, published):
    assert count(name, IMAGENET, 1000) == published


def test_count_of_inception_v3_is_that_of_torchvision_with_the_auxiliary_head():
    assert count("inception_v3", (299, 299, 3), 1000) == 27_161_264


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "published"),
    [
        ("resnet20_cifar", CIFAR, 10, 269_722),  # He et al. (2016): 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
        ("resnet32_cifar", CIFAR, 10, 464_154),
        ("resnet44_cifar", CIFAR, 10, 658_586),
        ("resnet56_cifar", CIFAR, 10, 853_018),
        ("resnet110_cifar", CIFAR, 10, 1_727_962),
        ("resnet164_cifar_v2", CIFAR, 10, 1_703_258),  # He et al. (2016b): 1.7M
        ("densenet100_cifar", CIFAR, 10, 769_162),  # Huang et al. (2017): 0.8M and 1.0M
        ("densenet40_cifar", CIFAR, 10, 1_019_722),
        ("vit_lite_7_4_cifar", CIFAR, 10, 3_716_874),  # Hassani et al. (2021): 3.717M
        ("resnext29_8x64d_cifar", CIFAR, 10, 34_426_698),  # Xie et al. (2017): 34.4M, 68.1M
        ("resnext29_16x64d_cifar", CIFAR, 10, 68_155_210),
        ("wrn_28_10", CIFAR, 10, 36_479_194),  # Zagoruyko and Komodakis (2016): 36.5M, 8.9M, 11.0M, 2.7M, 17.2M
        ("wrn_40_4", CIFAR, 10, 8_949_210),
        ("wrn_16_8", CIFAR, 10, 10_961_370),
        ("wrn_16_4", CIFAR, 10, 2_748_890),
        ("wrn_22_8", CIFAR, 10, 17_158_106),
        ("resnet20_cifar_gn_ws", CIFAR, 10, 269_722),
        ("nf_resnet20_cifar", CIFAR, 10, 272_483),
        ("nf_resnet56_cifar", CIFAR, 10, 855_797),
        ("nf_resnet110_cifar", CIFAR, 10, 1_730_768),
        ("airbench94", CIFAR, 10, 1_971_640),  # Jordan (2024): 1.97M
        ("lenet5", (32, 32, 1), 10, 61_706),
        ("mlp", DIGITS, 10, 669_706),
        ("linear", DIGITS, 10, 7_850),
        ("logistic_regression", DIGITS, 2, 785),
    ],
)
def test_count_of_a_form_for_small_images_is_the_published_one(name, shape, num_classes, published):
    assert count(name, shape, num_classes) == published


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_preactivation_moves_each_blocks_last_norm_to_its_front(depth):
    """With option A: the first norm of the network goes, one of 64 channels comes at the end, and the first norms of
    two blocks see the 16 and 32 channels before them instead of 32 and 64."""
    difference = 2 * (-16 + 64 + (16 - 32) + (32 - 64))
    assert count(f"resnet{depth}_cifar_v2", CIFAR, 10) == count(f"resnet{depth}_cifar", CIFAR, 10) + difference


@pytest.mark.parametrize(
    ("name", "blocks", "published"),
    [("resnet1202_cifar", 200, 19_421_274), ("resnet1001_cifar_v2", 111, 10_327_706)],  # He et al.: 19.4M, 10.2M
)
def test_count_of_a_thousand_layers_follows_from_few(name, blocks, published):
    """All blocks of a stage but the first are alike, and tracing hundreds of them takes half a minute."""
    assert models.create(name, num_classes=10).stage_sizes == (blocks,) * 3
    two, three = (count(name, CIFAR, 10, stage_sizes=(size,) * 3) for size in (2, 3))
    assert two + (blocks - 2) * (three - two) == published


def test_every_name_of_the_registry_is_counted():
    rows = pathlib.Path(__file__).read_text(encoding="utf-8")
    forgotten = [name for name in NAMES if f'"{name}"' not in rows and not name.endswith("_cifar_v2")]
    assert not forgotten, f"add a row with the published count of {forgotten}"


def test_fields_give_the_other_published_forms():
    assert (
        count("resnet20_cifar", CIFAR, 10, shortcut="projection") == 272_474 + 2 * (32 + 64) - 192
    )  # option B, BN included
    assert count("resnet18", CIFAR, 10, stem="cifar") == 11_173_962  # the popular CIFAR form of ResNet-18
    assert count("lenet5", DIGITS, 10, padding="SAME") == 61_706
    assert count("resnet50", IMAGENET, 1000, stride_in_1x1=True) == 25_557_032
