"""Vision transformers against torchvision and timm: random weights, the same logits, gradients and attention."""

import jax
import numpy as np
import optax
import pytest

import models
from models.weights import export_torch, load_torch

torch = pytest.importorskip("torch")
from torchvision_on_cpu import import_zoo  # noqa: E402

zoo, timm = import_zoo()
from timm.models.vision_transformer import VisionTransformer as TimmTransformer  # noqa: E402
from zoo_comparison import CLASSES, images_of, our_model, relative_error, to_torch  # noqa: E402

SMALL = {"patch_size": 4, "width": 24, "depth": 3, "heads": 4, "hidden": 40}
TIMM = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4, "mlp_ratio": 40 / 24, "num_classes": CLASSES}
FORMS = {  # name -> library, our fields, timm's
    "torchvision": ("torchvision", {}, {}),
    "timm": ("timm", {}, {}),
    "timm, mean": ("timm", {"pool": "mean"}, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    "timm, no bias": ("timm", {"qkv_bias": False}, {"qkv_bias": False}),
}


def torch_network(form, dtype="float64", side=20):
    library, _, options = FORMS[form]
    if library == "timm":
        network = TimmTransformer(img_size=side, **TIMM, **options)
    else:
        network = zoo.VisionTransformer(side, 4, 3, 4, 24, 40, num_classes=CLASSES)
    return randomized(network, dtype)


def randomized(network, dtype):
    generator = torch.Generator().manual_seed(0)
    network = network.to(getattr(torch, dtype)).eval()
    for value in network.state_dict().values():
        low, high = (0.5, 1.5) if value.ndim == 1 else (-1, 1)
        noise = torch.empty_like(value).uniform_(low, high, generator=generator)
        value.copy_(noise * (3 / value[0].numel()) ** 0.5 if value.ndim > 1 else noise)
    return network


# float64 leaves rounding at 1e-15, so any slip in structure shows; float32 allows for sums of some hundred terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_torch_network(form, dtype, tolerance):
    network, images = torch_network(form, dtype), images_of(20, dtype)
    with jax.enable_x64(dtype == "float64"):
        model, variables = our_model("vit_b_16", network, dtype, **SMALL, **FORMS[form][1])
        logits = jax.jit(model.apply)(variables, images)
        assert logits.dtype == dtype
        with torch.no_grad():
            assert relative_error(logits, network(to_torch(images))) < tolerance


def test_timms_tiny_network_in_full_size():
    network, images = (
        randomized(timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES), "float32"),
        images_of(224, "float32"),
    )
    model, variables = our_model("vit_ti_16", network, "float32")
    with torch.no_grad():
        assert relative_error(jax.jit(model.apply)(variables, images), network(to_torch(images))) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_loss_are_those_of_the_torch_network(form):
    network, images, labels = torch_network(form), images_of(20, "float64"), np.array([2, 5])
    library, fields, _ = FORMS[form]
    with jax.enable_x64(True):
        model, variables = our_model("vit_b_16", network, "float64", **SMALL, **fields)

        def loss(params):
            logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = export_torch(
            "vit_b_16", {"params": jax.jit(jax.grad(loss))(variables["params"])}, library=library, **SMALL, **fields
        )
    torch.nn.functional.cross_entropy(network(to_torch(images)), torch.from_numpy(labels)).backward()
    for key, parameter in network.named_parameters():
        if key.endswith(("in_proj_bias", "qkv.bias")):  # the keys' bias cancels in the softmax: both give rounding
            ours, theirs = (np.delete(np.asarray(g), np.s_[24:48]) for g in (gradients[key], parameter.grad))
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        else:
            assert relative_error(gradients[key], parameter.grad) < 1e-10, key


def test_attention_maps_are_timms_own():
    network, images = torch_network("timm"), images_of(20, "float64")
    theirs = {}
    for i, block in enumerate(network.blocks, start=1):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *args, i=i: theirs.update({f"attention{i}": args[2]}))
    with torch.no_grad():
        network(to_torch(images))
    with jax.enable_x64(True):
        model, variables = our_model("vit_b_16", network, "float64", **SMALL)
        maps = models.features(model, variables, images)
    assert len(theirs) == 3
    for name, weights in theirs.items():
        assert maps[name].shape == (2, 4, 26, 26)
        assert relative_error(maps[name], weights) < 1e-12


def test_attention_maps_are_those_of_torchs_multi_head_attention():
    network, images = torch_network("torchvision"), images_of(20, "float64")
    queries = {}
    layers = network.encoder.layers
    for i, layer in enumerate(layers, start=1):
        layer.ln_1.register_forward_hook(lambda *args, i=i: queries.update({i: args[2]}))
    with torch.no_grad():
        network(to_torch(images))
    with jax.enable_x64(True):
        model, variables = our_model("vit_b_16", network, "float64", **SMALL)
        maps = models.features(model, variables, images)
    for i, layer in enumerate(layers, start=1):
        x = queries[i]
        _, weights = layer.self_attention(x, x, x, need_weights=True, average_attn_weights=False)
        assert relative_error(maps[f"attention{i}"], weights) < 1e-12


@pytest.mark.parametrize("side", [12, 28])
def test_position_embeddings_for_other_images_are_resampled_as_torchvision_does(side):
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = torch_network("torchvision").state_dict()
    with jax.enable_x64(True):
        variables, report = load_torch(
            "vit_b_16", state, image_shape=(side, side, 3), param_dtype="float64", dtype="float64", **SMALL
        )
    assert report.adapted == ("encoder.pos_embedding",)
    expected = interpolate_embeddings(side, 4, dict(state))["encoder.pos_embedding"]
    assert relative_error(variables["params"]["pos_embedding"], expected) < 1e-12


@pytest.mark.parametrize("sides", [(12, 12), (28, 36)])
def test_position_embeddings_for_other_images_are_resampled_as_timm_does(sides):
    from timm.layers import resample_abs_pos_embed

    state = torch_network("timm").state_dict()
    with jax.enable_x64(True):
        variables, report = load_torch(
            "vit_b_16", state, image_shape=(*sides, 3), param_dtype="float64", dtype="float64", **SMALL
        )
    assert report.adapted == ("pos_embed",)
    expected = resample_abs_pos_embed(state["pos_embed"], [sides[0] // 4, sides[1] // 4])  # in float32
    assert relative_error(variables["params"]["pos_embedding"], expected) < 1e-5


@pytest.mark.parametrize("form", ["torchvision", "timm", "timm, mean"])
def test_an_export_is_accepted_by_the_torch_network_with_no_key_missing(form):
    network = torch_network(form, "float32")
    library, fields, _ = FORMS[form]
    _, variables = our_model("vit_b_16", network, "float32", **SMALL, **fields)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    exported = export_torch("vit_b_16", variables, library=library, **SMALL, **fields)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
