"""The table of a model: published counts and costs, and rows that are those of the layers."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import models
from dl_core.errors import UsageError


@pytest.mark.parametrize(
    ("name", "parameters", "giga"),
    [  # as torchvision prints them
        ("alexnet", 61_100_840, 0.71),
        ("vgg16", 138_357_544, 15.47),
        ("resnet18", 11_689_512, 1.81),
        ("resnet50", 25_557_032, 4.09),
        ("googlenet", 13_004_888, 1.50),
        ("densenet121", 7_978_856, 2.83),
    ],
)
def test_totals_are_the_published_ones(name, parameters, giga):
    table = models.summary(name)
    assert table.parameters == parameters
    assert round(table.multiply_adds / 1e9, 2) == giga


def test_the_table_of_resnet_50_takes_seconds_and_no_compilation():
    start = time.process_time()  # of this process alone, whatever else the machine does
    table = models.summary("resnet50")
    assert time.process_time() - start < 20  # measured: 1.5 s, and several times that with annotations enforced
    kinds = [row.type for row in table.rows]
    assert (kinds.count("Conv"), kinds.count("BatchNorm"), kinds.count("Dense")) == (53, 53, 1)
    assert table.rows[0] == ("conv1", "Conv", (112, 112, 64), 9408, 112 * 112 * 9408, (7, 7))
    assert table.rows[-3].receptive_field == (427, 427)  # with stride 2 in the 3×3 convolutions; 483 in the 1×1
    assert table.rows[-1] == ("fc", "Dense", (1000,), 2_049_000, 2_048_000, (224, 224))


def test_lenet_by_hand():
    """On the CPU its convolutions are products with banded matrices; the table tells of the convolutions."""
    table = models.summary("lenet5", (32, 32, 1), 10)
    assert [row[2:] for row in table.rows] == [
        ((28, 28, 6), 156, 117_600, (5, 5)),
        ((10, 10, 16), 2416, 240_000, (14, 14)),
        ((120,), 48_120, 48_000, (32, 32)),
        ((84,), 10_164, 10_080, (32, 32)),
        ((10,), 850, 840, (32, 32)),
    ]
    lines = str(table).splitlines()
    assert lines[0] == "lenet5 on 32×32×1: 61,706 parameters, 0.000417 G multiply-adds an image"
    assert lines[-1].split() == ["total", "61,706", "416,520"]
    assert len({line.index("parameters") + len("parameters") for line in lines if "receptive" in line}) == 1
    ends = {line.index(number) + len(number) for line, number in zip(lines[4:6], ["156", "2,416"], strict=True)}
    assert len(ends) == 1  # numbers end in one column


ONE_OF_EACH_FAMILY = ["logistic_regression", "mlp", "resnet20_cifar", "resnet20_cifar_v2", "mobilenet_v1"]


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_rows_add_up_to_all_parameters(name):
    _check_total(name, 32)


@pytest.mark.slow
def test_every_family_has_a_table():
    families = {}
    for name in models.list_models():
        families.setdefault(type(models.create(name, num_classes=2)).__name__, name)
    for name in families.values():
        _check_total(name, 32 if "cifar" in name else 299 if name.startswith("inception") else 224)


def _check_total(name, side):
    classes = 2 if name == "logistic_regression" else 7
    table = models.summary(name, (side, side, 3), classes)
    model = models.create(name, num_classes=classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert str(table).count("\n") == len(table.rows) + 5


class Shared(nn.Module):
    """A layer used twice, a parameter and a product of the model's own, and a head for training alone."""

    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.Conv(3, (3, 3), name="twice")
        x = layer(layer(x))
        if train or self.is_initializing():
            nn.Dense(2, name="aux")(x)
        return x.mean((1, 2)) @ self.param("w", nn.initializers.ones, (3, 5))


def test_shared_layers_own_parameters_and_heads_of_training():
    rows = models.summary(Shared(), (8, 8, 3)).rows
    assert rows[0] == ("(the model itself)", "Shared", (5,), 15, 15, (8, 8))
    assert rows[1] == ("twice", "Conv", (8, 8, 3), 84, 64 * 81, (3, 3))
    assert rows[2] == ("twice", "Conv", (8, 8, 3), 0, 64 * 81, (5, 5))
    assert rows[3] == ("aux", "(in training)", (), 8, 0, None)


def test_unknown_names_are_answered():
    with pytest.raises(UsageError, match="unknown model 'resnet51'"):
        models.summary("resnet51")
