"""Attention rollout and gradient-weighted attention: known answers, naive loops, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explanation_contract import assert_keeps_the_contract
from jax.ad_checkpoint import checkpoint_name

import models
from dl_core.errors import UsageError
from dl_core.explain.attention import attention_relevance, attention_rollout, gradient_rollout

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 12, 8, 3)), jnp.float32)  # 3 × 2 patches of 4 pixels
BY_TARGET = (gradient_rollout, attention_relevance)


def tokens_of(images):
    """Two-pixel patches of [batch, 8, 8, 3], on average: 16 tokens of 3 channels."""
    return images.reshape(len(images), 4, 2, 4, 2, 3).mean(axis=(2, 4)).reshape(len(images), 16, 3)


def attentive(params, images):
    """Two blocks of attention without a class token, of the parameters of the contract's small network."""
    x = tokens_of(images) @ params["conv1"][0, 0]
    for block in range(2):
        keys = x @ params["conv2"][0, block]
        weights = checkpoint_name(jax.nn.softmax(3 * jnp.einsum("bqd,bkd->bqk", x, keys))[:, None], f"attention{block}")
        x = x + jnp.einsum("bhqk,bkd->bqd", weights, x @ params["conv2"][1, block])
    return x.reshape(len(x), -1) @ params["fc"]


def with_weights(*blocks):
    """A model whose attention weights [heads, tokens, tokens] are given, and whose logits weight the tokens."""

    def apply_fn(params, images):
        x = jnp.broadcast_to(images[:, :1, :1, 0], (len(images), blocks[0].shape[-1], 1)) + params[None, :, None]
        for i, weights in enumerate(blocks):
            weights = jnp.broadcast_to(jnp.asarray(weights), (len(images), *weights.shape)) + 0 * images[:, :1, :1, :1]
            x = x + jnp.einsum("bhqk,bkd->bqd", checkpoint_name(weights, f"attention{i}"), x)
        return x[:, :2, 0]

    return apply_fn


def random_rows(seed, tokens=7, heads=2):
    weights = np.random.default_rng(seed).uniform(size=(heads, tokens, tokens)) ** 3
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["cls", "mean"])
def transformer(request):
    model = models.create(
        "vit_b_16", num_classes=3, patch_size=4, width=16, depth=2, heads=2, hidden=24, pool=request.param
    )
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    return model, variables


@pytest.mark.parametrize("method", [*BY_TARGET, attention_rollout])
def test_methods_keep_the_contract(method):
    """On a network of attention that takes the same parameters; rollout knows no target."""
    if method is attention_rollout:
        assert_keeps_the_contract(lambda _, params, images, target: attention_rollout(attentive, params, images))
    else:
        explain = lambda _, params, images, target: method(attentive, params, images, target, upsample=False)
        # below the logits' own change of 1, the floor of every query's own relevance
        assert_keeps_the_contract(explain)


def naive_rollout(weights, residual, fusion, ratio):
    """One image at a time, one block at a time; weights of the blocks [batch, heads, tokens, tokens]."""
    maps = []
    for b in range(len(weights[0])):
        result = np.eye(weights[0].shape[-1])
        for block in weights:
            fused = getattr(np, fusion)(np.asarray(block[b], np.float64), axis=0).copy()
            for place in np.argsort(fused.ravel(), kind="stable")[: int(ratio * fused.size)]:
                fused[np.unravel_index(place, fused.shape)] = 0
            step = 0.5 * fused + 0.5 * np.eye(len(fused)) if residual else fused
            sums = step.sum(axis=1, keepdims=True)
            result = step / np.where(sums == 0, 1, sums) @ result
        maps.append(result)
    return np.stack(maps)


def of_patches(relevance, pool):
    return (relevance[:, 0, 1:] if pool == "cls" else relevance.mean(axis=1)).reshape(-1, 3, 2)


@pytest.mark.parametrize(
    ("residual", "fusion", "ratio"),
    [(True, "mean", 0.0), (False, "max", 0.0), (True, "min", 0.5), (False, "mean", 0.9)],
)
def test_rollout_is_the_product_of_a_loop_over_blocks(transformer, residual, fusion, ratio):
    model, variables = transformer
    maps = jax.jit(lambda v, x: models.features(model, v, x))(variables, IMAGES)
    weights = [np.asarray(maps[f"attention{i}"]) for i in (1, 2)]
    expected = naive_rollout(weights, residual, fusion, ratio)
    options = {"residual": residual, "head_fusion": fusion, "discard_ratio": ratio, "upsample": False}
    given = attention_rollout(model.apply, variables, IMAGES, **options)
    np.testing.assert_allclose(given, of_patches(expected, model.pool), rtol=1e-4, atol=1e-6)  # float32 products


def test_rows_of_the_rollout_sum_to_one():
    """With the mean over the queries, so does the map; with a class token, its own share is missing from it."""
    without = with_weights(random_rows(0, 6), random_rows(1, 6))
    maps = attention_rollout(without, jnp.zeros(6), IMAGES, upsample=False)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    blocks = random_rows(0), random_rows(1)
    maps = attention_rollout(with_weights(*blocks), jnp.zeros(7), IMAGES, upsample=False)
    own = naive_rollout([block[None] for block in blocks], True, "mean", 0)[0, 0, 0]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1 - own, rtol=1e-5)


def test_attention_of_tokens_to_themselves_mixes_nothing():
    identity = np.eye(7, dtype=np.float32)[None]
    maps = attention_rollout(with_weights(identity, identity), jnp.zeros(7), IMAGES, upsample=False)
    np.testing.assert_array_equal(maps, 0)  # the class token has seen no patch
    identity = np.eye(6, dtype=np.float32)[None]
    maps = attention_rollout(with_weights(identity, identity), jnp.zeros(6), IMAGES, upsample=False)
    np.testing.assert_allclose(maps, 1 / 6, rtol=1e-6)  # every query its own patch


def test_the_patch_that_the_class_token_looks_at_has_the_relevance():
    """First every token looks at patch (1, 0), or the class token does at the end."""
    weights = np.zeros((1, 7, 7), np.float32)
    weights[:, :, 1 + 2] = 1
    target = np.zeros((3, 2))
    target[1, 0] = 1
    apply_fn = with_weights(weights)
    maps = attention_rollout(apply_fn, jnp.ones(7), IMAGES, upsample=False)
    np.testing.assert_allclose(maps, np.broadcast_to(target / 2, (2, 3, 2)), rtol=1e-6)
    for method in BY_TARGET:
        maps = method(apply_fn, jnp.ones(7), IMAGES, 0, upsample=False)
        assert (maps[:, 1, 0] > 0).all()
        np.testing.assert_array_equal(maps * (1 - target)[None].astype(np.float32), 0)


def test_gradient_weighted_methods_are_the_loop_of_the_paper(transformer):
    model, variables = transformer
    target = np.array([1, 2])
    names = [f"attention{i}" for i in (1, 2)]
    maps = jax.jit(lambda v, x: models.features(model, v, x))(variables, IMAGES)
    deltas = {name: jnp.zeros_like(maps[name]) for name in names}

    def explained(deltas):
        return model.apply({**variables, "perturbations": deltas}, IMAGES)[np.arange(2), target].sum()

    gradients = jax.jit(jax.grad(explained))(deltas)
    blocks = [np.maximum(np.asarray(gradients[name] * maps[name], np.float64), 0).mean(axis=1) for name in names]
    relevance = np.broadcast_to(np.eye(blocks[0].shape[-1]), blocks[0].shape)
    for weighted in blocks:
        relevance = relevance + weighted @ relevance
    ratio = 0.6 if model.pool == "mean" else 0.0
    rollout = naive_rollout([weighted[:, None] for weighted in blocks], True, "mean", ratio)
    arguments = model.apply, variables, IMAGES
    given = attention_relevance(*arguments, target, upsample=False)
    np.testing.assert_allclose(given, of_patches(relevance, model.pool), rtol=1e-4, atol=1e-7)  # gradients in float32
    rolled_out = gradient_rollout(*arguments, target, discard_ratio=ratio, upsample=False)
    np.testing.assert_allclose(rolled_out, of_patches(rollout, model.pool), rtol=1e-4, atol=1e-7)
    other = attention_relevance(*arguments, (target + 1) % 3, upsample=False)
    assert np.abs(other - given).max() > 0


def test_maps_are_brought_to_the_image():
    apply_fn = with_weights(random_rows(0))
    raw = attention_rollout(apply_fn, jnp.zeros(7), IMAGES, upsample=False)
    nearest = attention_rollout(apply_fn, jnp.zeros(7), IMAGES, interpolation="nearest")
    np.testing.assert_allclose(nearest, raw.repeat(4, axis=1).repeat(4, axis=2), rtol=1e-6)
    bilinear = attention_relevance(apply_fn, jnp.ones(7), IMAGES, 0)
    assert bilinear.shape == (2, 12, 8)


def test_layers_are_chosen_by_pattern_or_by_name():
    apply_fn = with_weights(random_rows(0), random_rows(1))
    last = attention_rollout(with_weights(random_rows(1)), jnp.zeros(7), IMAGES, upsample=False)
    for layers in ("attention1", "*1", ["attention1"], ("attention1", "attention1")):
        given = attention_rollout(apply_fn, jnp.zeros(7), IMAGES, layers=layers, upsample=False)
        np.testing.assert_allclose(given, last, rtol=1e-5)
    both = attention_rollout(apply_fn, jnp.zeros(7), IMAGES, layers=["attention1", "attention0"], upsample=False)
    ordered = attention_rollout(apply_fn, jnp.zeros(7), IMAGES, upsample=False)
    np.testing.assert_array_equal(both, ordered)  # in the order of computation


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_fusion": "sum"}, "unknown head_fusion 'sum'; .*mean"),
        ({"discard_ratio": 1.0}, r"discard_ratio must be in \[0, 1\), got 1.0"),
        ({"discard_ratio": -0.1}, r"discard_ratio must be in \[0, 1\), got -0.1"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"layers": "weights*"}, r"no layer that matches 'weights\*'.*here: attention0, attention1\. Pass the softmax"),
        ({"layers": ["attention3"]}, "unknown layer 'attention3'; did you mean 'attention"),
        ({"layers": []}, r"no layer that matches \[\]"),
    ],
)
def test_nonsense_is_refused_before_anything_compiles(options, words, annotations_off):
    with pytest.raises(UsageError, match=words):
        attention_rollout(with_weights(random_rows(0), random_rows(1)), jnp.zeros(7), IMAGES, **options)


def test_weights_that_are_not_of_patches_are_refused():
    with pytest.raises(UsageError, match=r"at most one class token.*checkpoint_name\(weights"):
        attention_rollout(with_weights(random_rows(0, tokens=8)), jnp.zeros(8), IMAGES)  # two tokens before 6 patches
    with pytest.raises(UsageError, match=r"\[2, heads, tokens, tokens\].*got attention0 \[2, 2, 8, 8\]"):
        attention_rollout(with_weights(random_rows(0, tokens=8)), jnp.zeros(8), IMAGES, layers=["attention0"])

    def two_resolutions(params, images):
        coarse = with_weights(random_rows(0, 6))(params[:6], images)
        weights = jnp.broadcast_to(jnp.asarray(random_rows(1, 24))[None], (2, 2, 24, 24)) + images[:, :1, :1, :1]
        return coarse + checkpoint_name(weights, "attention9")[:, 0, :2, 0]

    with pytest.raises(UsageError, match="same tokens, got attention0 of 6, attention9 of 24"):
        attention_rollout(two_resolutions, jnp.zeros(7), IMAGES)


@pytest.mark.parametrize("method", BY_TARGET)
def test_a_target_out_of_range_is_refused(method):
    with pytest.raises(UsageError, match=r"target must be in \[0, 2\), got 2"):
        method(with_weights(random_rows(0)), jnp.zeros(7), IMAGES, 2)


def test_a_second_call_compiles_nothing_new():
    traces, inner = [], with_weights(random_rows(0))

    def counted(params, images):
        traces.append(None)
        return inner(params, images)

    for explain in (
        lambda images: attention_rollout(counted, jnp.zeros(7), images),
        lambda images: attention_relevance(counted, jnp.zeros(7), images, 0),
    ):
        explain(IMAGES)
        first = len(traces)
        explain(IMAGES + 1)
        assert len(traces) == first
