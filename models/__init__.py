"""Flax Linen modules, one family per file, and the registry that makes them by name. Never imports train/.

`create("resnet50", num_classes=10)` makes a model, `list_models("resnet*")` lists names, `load_torch` and
`export_torch` take and give weights of torchvision and timm, `features(model, variables, x)` returns the named feature
maps of a model and `feature_strides` their strides; `summary` is the table of its layers and `draw` its graph as a
picture. Importing this package registers its families.
"""

from models import (
    airbench,
    alexnet,
    densenet,
    googlenet,
    inception,
    lenet,
    linear,
    mlp,
    mobilenet,
    nf_resnet,
    resnet,
    vgg,
    vit,
    wide_resnet,
    zfnet,
)
from models.draw import draw
from models.extraction import extract_features
from models.feature_maps import feature_strides, features
from models.multi_head import create_multi_head, split_logits
from models.registry import create, list_models, register
from models.summary import summary
from models.weights import export_torch, load_torch

__all__ = [
    "airbench",
    "alexnet",
    "create",
    "create_multi_head",
    "densenet",
    "draw",
    "export_torch",
    "extract_features",
    "feature_strides",
    "features",
    "googlenet",
    "inception",
    "lenet",
    "linear",
    "list_models",
    "load_torch",
    "mlp",
    "mobilenet",
    "nf_resnet",
    "register",
    "resnet",
    "split_logits",
    "summary",
    "vgg",
    "vit",
    "wide_resnet",
    "zfnet",
]
