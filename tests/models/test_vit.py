"""Vision transformers: named maps, pooling, noise, position embeddings, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from dl_core.errors import UsageError
from models.vit import resize_position_embedding
from models.weights import export_torch, load_torch

TINY = {"patch_size": 4, "width": 16, "depth": 5, "heads": 2, "hidden": 24}


def tiny(**fields):
    return models.create("vit_b_16", num_classes=3, **{**TINY, **fields})


@pytest.fixture(scope="module")
def example():
    """Images of 3 × 2 patches and variables."""
    images = jax.random.normal(jax.random.key(1), (2, 12, 8, 3))
    return images, jax.jit(tiny().init)(jax.random.key(0), images)


def test_maps_are_grids_of_patches_and_attention_weights_in_the_order_of_computation(example):
    images, variables = example
    maps = models.features(tiny(), variables, images)
    names = "stem attention1 attention2 stage1 attention3 stage2 attention4 stage3 last_input attention5 stage4"
    assert list(maps) == [*names.split(), "penultimate"]
    for name, value in maps.items():
        if name == "penultimate":
            assert value.shape == (2, 16)
        elif name.startswith("attention"):
            assert value.shape == (2, 2, 7, 7)
            np.testing.assert_allclose(value.sum(axis=-1), 1, rtol=1e-5)  # float32
        else:
            assert value.shape == (2, 3, 2, 16)
    assert models.feature_strides(tiny(), (12, 8, 3)) == dict.fromkeys(
        ("stem", "stage1", "stage2", "stage3", "last_input", "stage4"), 4
    )


def test_nothing_is_recorded_and_nothing_changes_when_no_map_is_asked_for(example):
    images, variables = example
    apply = jax.jit(lambda v, x: tiny().apply(v, x))
    logits, recorded = tiny().apply(variables, images, mutable=["features"])
    np.testing.assert_allclose(apply(variables, images), logits, rtol=1e-5, atol=1e-6)
    assert set(recorded) == {"features"}
    operations = str(jax.make_jaxpr(tiny().apply)(variables, images)).count("concatenate")
    assert operations == 1  # the class token, and none for the grids


def test_the_class_reads_the_last_patches_before_the_last_attention_and_not_after_it(example):
    images, variables = example
    maps = models.features(tiny(), variables, images)

    def gradient(name):
        apply = lambda delta: tiny().apply({**variables, "perturbations": {name: delta}}, images)[:, 0].sum()
        return jax.grad(apply)(jnp.zeros_like(maps[name]))

    assert np.abs(gradient("last_input")).max() > 1e-4
    assert np.abs(gradient("attention5")).max() > 1e-6
    assert np.abs(gradient("stage3")).max() > 1e-4
    assert not gradient("stage4").any()


def test_with_pool_mean_the_order_of_patches_matters_through_their_positions_only(example):
    images, _ = example
    model = tiny(pool="mean")
    variables = model.init(jax.random.key(0), images)
    assert "class_token" not in variables["params"]
    shuffled = images.at[:, :4].set(images[:, 4:8]).at[:, 4:8].set(images[:, :4])
    assert not np.allclose(model.apply(variables, images), model.apply(variables, shuffled), rtol=1e-3)
    variables["params"]["pos_embedding"] *= 0
    np.testing.assert_allclose(
        model.apply(variables, images), model.apply(variables, shuffled), rtol=1e-4, atol=1e-5
    )  # float32 sums in another order


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "stochastic_depth"])
def test_noise_acts_in_training_only(example, field):
    images, variables = example
    model = tiny(**{field: 0.5})
    apply = jax.jit(
        lambda seed, train: model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)}),
        static_argnums=1,
    )
    assert not np.allclose(apply(0, True), apply(1, True))
    np.testing.assert_array_equal(apply(0, False), apply(1, False))


def test_stochastic_depth_drops_whole_branches_and_never_those_of_the_first_block():
    images = jnp.ones((64, 8, 8, 3))
    model = tiny(stochastic_depth=0.5, depth=2)
    variables = model.init(jax.random.key(0), images)
    _, recorded = model.apply(variables, images, train=True, mutable=["features"], rngs={"dropout": jax.random.key(0)})
    first, last = (np.asarray(recorded["features"][name]).reshape(64, -1) for name in ("stage1", "stage2"))
    assert len(np.unique(first.round(4), axis=0)) == 1
    kinds, counts = np.unique((last - first).round(3), axis=0, return_counts=True)
    assert len(kinds) == 4  # attention and MLP, each there or not
    assert counts.min() >= 5  # 16 ± 3.5 expected


def test_position_embeddings_belong_to_an_image_size(example):
    _, variables = example
    with pytest.raises(UsageError, match="are for 7 tokens, these images have 10: use images as large as those"):
        tiny().apply(variables, jnp.zeros((1, 12, 12, 3)))


def test_resampling_keeps_the_class_token_and_a_constant():
    embedding = jnp.concatenate([jnp.full((1, 1, 4), 7.0), jnp.ones((1, 9, 4))], axis=1)
    resample = lambda x, grid: jax.image.resize(x, (1, *grid, 4), "linear")
    resized = resize_position_embedding(embedding, (5, 2), resample)
    assert resized.shape == (1, 11, 4)
    np.testing.assert_allclose(resized[:, 0], 7)
    np.testing.assert_allclose(resized[:, 1:], 1, rtol=1e-6)
    with pytest.raises(UsageError, match="12 position embeddings are no square grid"):
        resize_position_embedding(jnp.ones((1, 12, 4)), (5, 2), resample)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_export_and_load_give_every_bit_back(library):
    variables = tiny().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    state = export_torch("vit_b_16", variables, library=library, **TINY)
    key = "encoder.layers.encoder_layer_4.self_attention.in_proj_weight"
    assert state["blocks.4.attn.qkv.weight" if library == "timm" else key].shape == (48, 16)
    loaded, report = load_torch("vit_b_16", state, **TINY)
    assert len(report.loaded) == len(jax.tree.leaves(variables))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_older_keys_of_torchvision_are_understood():
    variables = tiny().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    state = export_torch("vit_b_16", variables, **TINY)
    old = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in state.items()}
    assert set(old) != set(state)
    jax.tree.map(np.testing.assert_array_equal, load_torch("vit_b_16", old, **TINY)[0], variables)


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"pool": "max"}, (8, 8), "unknown pool 'max'"),
        ({"heads": 3}, (8, 8), "heads must divide width, got 3 and 16"),
        ({}, (8, 9), "must be multiples of 4, got 8×9"),
        ({"activation": "glu"}, (8, 8), "unknown activation 'glu'"),
    ],
)
def test_nonsense_is_refused_with_the_value_given(fields, shape, words):
    with pytest.raises(UsageError, match=words):
        jax.eval_shape(tiny(**fields).init, jax.random.key(0), jnp.zeros((1, *shape, 3)))


def test_an_unknown_library_is_refused():
    with pytest.raises(UsageError, match="unknown library 'keras'"):
        export_torch("vit_b_16", {"params": {}}, library="keras")
