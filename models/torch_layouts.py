"""How each family's names and arrays differ from those of torchvision and timm; models/weights.py does the rest."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Array

from dl_core.errors import UsageError, unknown_name
from models.alexnet import AlexNet
from models.densenet import DenseNet
from models.googlenet import GoogLeNet
from models.inception import InceptionV3
from models.layers.resampling import resize
from models.mobilenet import MobileNetV1
from models.nf_resnet import NFResNet
from models.resnet import ResNet
from models.vgg import VGG
from models.vit import VisionTransformer, resize_position_embedding

Substitutions = tuple[tuple[str, str], ...]  # (pattern, replacement) of re.sub, one after another


class TorchLayout(NamedTuple):
    """How the names and arrays of a family differ from torch's.

    stem: the module that sees the images; its input channels may differ from the weights'.
    heads: the modules that give logits; their classes may differ, or they may be absent from the weights.
    rename: our module path, e.g. ("layer1_0", "conv1") -> torch's, e.g. "layer1.0.conv1".
    rename_keys: (pattern, replacement) for whole keys, after `rename`.
    bins: dense layers that see a flattened map -> the side of that map. Torch flattens channels first.
    as_convolution: dense layers that torch keeps as 1×1 convolutions.
    old_keys: (pattern, replacement) for the keys of older files.
    resample: parameters that depend on the image size -> (value, new height and width of the images) -> new value.
    image_size: height and width of an image that the model takes.
    """

    stem: str
    heads: tuple[str, ...]
    rename: Callable[[tuple[str, ...]], str]
    rename_keys: Substitutions = ()
    bins: Mapping[str, int] = {}
    as_convolution: tuple[str, ...] = ()
    old_keys: Substitutions = ()
    resample: Mapping[str, Callable[[Array, tuple[int, int]], Array]] = {}
    image_size: int = 224


def _numbered(modules: tuple[str, ...]) -> str:
    """("layer1_0", "conv1") -> "layer1.0.conv1": numbers at the end of a name are places in a torch container."""
    return ".".join(re.sub(r"_(?=\d+(_\d+)*$)", ".", name) for name in modules)


def _resnet(modules: tuple[str, ...]) -> str:
    return _numbered(modules).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")


def _resnet_v2(modules: tuple[str, ...]) -> str:
    """timm's names, e.g. ("layer1_0", "bn1") -> "stages.0.blocks.0.norm1"."""
    name = re.sub(r"^layer(\d+)_", lambda found: f"stages.{int(found[1]) - 1}.blocks.", ".".join(modules))
    name = re.sub(r"^conv1$", "stem.conv", re.sub(r"^fc$", "head.fc", name))
    return re.sub(r"\.bn(\d)", r".norm\1", name).replace("downsample_conv", "downsample.conv")


def _nf_resnet(modules: tuple[str, ...]) -> str:
    """timm's names, e.g. ("layer1_0", "conv1") -> "stages.0.0.conv1"."""
    return _resnet_v2(modules).replace(".blocks.", ".")


def _densenet(modules: tuple[str, ...]) -> str:
    return ".".join(modules if modules == ("classifier",) else ("features", *modules))


def _vision_transformer(
    model: VisionTransformer, weights: Mapping[str, np.ndarray], library: str | None
) -> TorchLayout:
    library = library or ("timm" if "pos_embed" in weights else "torchvision")
    if library not in _VISION_TRANSFORMER:
        raise unknown_name("library", library, _VISION_TRANSFORMER)
    modules, keys, old_keys, resample = _VISION_TRANSFORMER[library]
    positions = weights.get("pos_embed" if library == "timm" else "encoder.pos_embedding")
    side = 224 if positions is None else model.patch_size * int(positions.shape[1] ** 0.5)

    def resample_positions(value: Array, sides: tuple[int, int]) -> Array:
        rows, columns = (pixels // model.patch_size for pixels in sides)
        return resize_position_embedding(value, (rows, columns), resample)

    rename = lambda path: substitute(modules, ".".join(path))
    options = {
        "resample": {"pos_embedding": resample_positions},
        "rename_keys": keys,
        "old_keys": old_keys,
        "image_size": side,
    }
    return TorchLayout("conv_proj", ("head",), rename, **options)


# Names of modules, whole keys, older keys, and how the library resamples position embeddings.
_VISION_TRANSFORMER = {
    "torchvision": (
        (
            ("^encoder_layer", "encoder.layers.encoder_layer"),
            ("mlp_", "mlp."),
            ("^ln$", "encoder.ln"),
            ("^head$", "heads.head"),
        ),
        ((r"in_proj\.", "in_proj_"), (r"^\.pos_", "encoder.pos_"), (r"^\.", "")),
        ((r"mlp\.linear_1", "mlp.0"), (r"mlp\.linear_2", "mlp.3")),
        partial(resize, method="bicubic", align_corners=True),
    ),
    "timm": (
        (
            ("^conv_proj", "patch_embed.proj"),
            ("^encoder_layer_", "blocks."),
            ("self_attention.in_proj", "attn.qkv"),
            ("self_attention.out_proj", "attn.proj"),
            ("mlp_0", "mlp.fc1"),
            ("mlp_3", "mlp.fc2"),
            ("ln_|^ln$", "norm"),
        ),
        ((r"^\.class_token", "cls_token"), (r"^\.pos_embedding", "pos_embed")),
        (),
        partial(resize, method="bicubic", antialias=True),
    ),
}


def substitute(pairs: Substitutions, text: str) -> str:
    """`re.sub` for one pair after another."""
    for pattern, replacement in pairs:
        text = re.sub(pattern, replacement, text)
    return text


def torch_layout(
    model: nn.Module, weights: Mapping[str, np.ndarray] | None = None, library: str | None = None
) -> TorchLayout:
    """The layout of a model's family.

    Args:
      model: from `models.create`.
      weights: the state dict to be read, where there is one: it tells the library and the image size.
      library: "torchvision" or "timm", for vision transformers, of which they have two sets of names.

    Returns:
      TorchLayout.

    Raises:
      UsageError: neither torchvision nor timm has the family, or the library is unknown.
    """
    weights = weights or {}
    match model:
        case ResNet(preactivation=True):
            return TorchLayout("conv1", ("fc",), _resnet_v2, as_convolution=("fc",))
        case ResNet():
            return TorchLayout("conv1", ("fc",), _resnet)
        case NFResNet():
            return TorchLayout("conv1", ("fc",), _nf_resnet)
        case VGG():
            return TorchLayout("features_0", ("classifier_6",), _numbered, bins={"classifier_0": 7})
        case AlexNet():
            return TorchLayout("features_0", ("classifier_6",), _numbered, bins={"classifier_1": 6})
        case GoogLeNet():
            bins = {"aux1/fc1": 4, "aux2/fc1": 4}
            return TorchLayout("conv1/conv", ("fc", "aux1", "aux2"), _numbered, bins=bins)
        case InceptionV3():
            return TorchLayout("Conv2d_1a_3x3/conv", ("fc", "AuxLogits"), ".".join, image_size=299)
        case DenseNet():
            old_keys = (r"\.(norm|conv)\.(\d)\.", r".\1\2.")
            return TorchLayout("conv0", ("classifier",), _densenet, old_keys=(old_keys,))
        case MobileNetV1():
            return TorchLayout("conv_stem", ("classifier",), _numbered)
        case VisionTransformer():
            return _vision_transformer(model, weights, library)
    raise UsageError(f"no layout of torch weights is known for {type(model).__name__}: torchvision and timm lack it")
