"""Drawings: the graph is the model's, and what is too large to be read is refused."""

import io

import flax.linen as nn
import jax.numpy as jnp
import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

import models
from dl_core.errors import UsageError
from models.graph import graph

TINY_RESNET = {"num_classes": 10, "stage_sizes": (1, 1), "width": 16}


def edges(nodes):
    return {(nodes[source].name, node.name) for node in nodes for source in node.sources}


def texts(figure):
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lenet_is_a_chain(pooling):
    model = models.create("lenet5", num_classes=10, padding="SAME", activation="relu", pooling=pooling)
    nodes = graph(model, (28, 28, 1), "layers")
    pool = f"{pooling} pool"
    names = ["image", "conv1", "relu", pool, "conv2", "relu", pool, "flatten", "fc1", "relu", "fc2", "relu", "fc3"]
    assert [node.name for node in nodes] == names
    assert [node.sources for node in nodes] == [set(), *[{i} for i in range(12)]]
    assert nodes[4].shape == (10, 10, 16)
    assert nodes[4].detail == "Conv 5×5"
    drawn = texts(models.draw(model, (28, 28, 1)))
    assert {"LeNet5", "conv1", "Conv 5×5 → 28×28×6", "Dense → 10"} <= set(drawn)


def test_residual_branches_meet_in_additions():
    nodes = graph(models.create("resnet18", **TINY_RESNET), (32, 32, 3), "layers")
    joins = [node for node in nodes if len(node.sources) > 1]
    assert [(join.name, {nodes[i].name for i in join.sources}) for join in joins] == [
        ("add", {"max pool", "layer1_0/bn2"}),
        ("add", {"layer2_0/bn2", "layer2_0/downsample_bn"}),
    ]
    figure = models.draw(models.create("resnet18", **TINY_RESNET))
    assert len(figure.findobj(FancyArrowPatch)) == sum(len(node.sources) for node in nodes)
    assert "layer2_0/downsample_conv" in texts(figure)


def test_branches_are_joined_by_a_concatenation():
    class Branches(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            parts = [nn.Conv(4, (size, size), name=f"conv{size}")(x) for size in (1, 3, 5)]
            x = nn.Conv(4, (1, 1), name="after")(nn.max_pool(x, (2, 2), padding="SAME"))
            return jnp.concatenate([*parts, x], axis=-1)

    nodes = graph(Branches(), (8, 8, 3), "layers")
    assert edges(nodes) == {
        *{("image", f"conv{size}") for size in (1, 3, 5)},
        *{(f"conv{size}", "concatenate") for size in (1, 3, 5)},
        ("image", "max pool"),
        ("max pool", "after"),
        ("after", "concatenate"),
    }
    assert texts(models.draw(Branches(), (8, 8, 3))).count("concatenate") == 1


def test_operations_are_those_of_the_program():
    nodes = graph(models.create("mlp", num_classes=3, hidden=(4,)), (2, 2, 1), "operations")
    assert [node.name for node in nodes] == ["image", "reshape", "dot_general", "add", "relu", "dot_general", "add"]


def test_units_and_connections_of_the_course_network():
    """W1: 3 inputs, 4 hidden units, 1 output: 21 parameters, 16 of them connections."""
    model = models.create("mlp", num_classes=1, hidden=(4,), activation="sigmoid")
    figure = models.draw(model, (3,), level="units")
    lines = figure.axes[0].lines
    assert sum(line.get_linestyle() == "-" for line in lines) == 3 * 4 + 4
    assert [len(line.get_xdata()) for line in lines if line.get_marker() == "o"] == [3, 4, 1]
    assert "MLP: 21 parameters" in texts(figure)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet50", {"input_shape": (64, 64, 3)}, r"resnet50 would have \d+ boxes, more than the 80.*models.summary"),
        ("lenet5", {"level": "layer"}, "unknown level 'layer'; did you mean 'layers'"),
        ("lenet5", {"level": "units"}, 'level="units" is for multi-layer perceptrons; lenet5 also has Conv'),
        ("mlp", {"level": "units"}, "layers of 3072, 512, 512, 10 units, and 24 can be drawn"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, options, words):
    with pytest.raises(UsageError, match=words):
        models.draw(name, **options)
