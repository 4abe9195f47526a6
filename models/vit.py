"""Vision Transformer: Dosovitskiy et al. (2021), "An image is worth 16×16 words", https://arxiv.org/abs/2010.11929.

Submodules bear torchvision's names (`conv_proj`, `encoder_layer_0/self_attention/in_proj`, `ln`, `head`; without its
`encoder` and `heads` in front); weights load from torchvision's and from timm's files. Attention is computed in plain
einsums with the softmax in at least float32. `pool="mean"` has no class token and averages the normalised patches
(Beyer, Zhai, Kolesnikov, 2022, https://arxiv.org/abs/2205.01580; timm's global_pool="avg", class_token=False,
fc_norm=False). Deviation: the last layer starts with σ = 0.02 instead of 0, so that gradients reach every layer from
the first step.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dl_core.activations import activation
from dl_core.errors import UsageError, unknown_name
from models.feature_maps import feature_maps_wanted, name_feature_map
from models.layers.dropout import Dropout
from models.registry import register

Tokens = Float[Array, "batch tokens width"]
Record = Callable[[str, Array], Array]  # (name, map) -> map: `name_feature_map` of the network

_PATCH_INIT = nn.initializers.lecun_normal()
_DENSE_INIT = nn.initializers.xavier_uniform()
_HEAD_INIT = nn.initializers.truncated_normal(0.02)


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V over `heads` slices of the channels, eq. 5–8 of the paper.

    heads: divides the width.
    qkv_bias: the projections to Q, K and V have biases.
    dropout: rate of single attention weights.
    """

    heads: int
    qkv_bias: bool
    dropout: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Tokens, train: bool, record: Callable[[Array], Array]) -> Tokens:
        """[batch, tokens, width] -> the same shape; record sees the weights [batch, heads, queries, keys]."""
        width = x.shape[-1]
        options = {"kernel_init": _DENSE_INIT, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Dense(3 * width, use_bias=self.qkv_bias, name="in_proj", **options)(x)
        query, key, value = jnp.moveaxis(x.reshape(*x.shape[:2], 3, self.heads, width // self.heads), 2, 0)
        precise = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=precise)
        weights = record(jax.nn.softmax(scores * (width // self.heads) ** -0.5))
        weights = Dropout(self.dropout, axis_name=self.axis_name)(weights, train).astype(self.dtype)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.Dense(width, name="out_proj", **options)(x.reshape(*x.shape[:2], width))


class EncoderBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), eq. 2 and 3 of the paper; fields as in VisionTransformer."""

    heads: int
    hidden: int
    activation: str
    qkv_bias: bool
    dropout: float
    attention_dropout: float
    stochastic_depth: float
    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Tokens, train: bool, record: Record) -> Tokens:
        """[batch, tokens, width] -> the same shape; record names "input" (normalised) and "attention"."""
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"epsilon": self.epsilon, **precision}
        noise = {"axis_name": self.axis_name}
        dense = {"kernel_init": _DENSE_INIT, "bias_init": nn.initializers.normal(1e-6), **precision}

        def residual(branch: Tokens) -> Tokens:
            """Stochastic depth: the whole branch of an example falls out together (Huang et al., 2016)."""
            kept = Dropout(self.stochastic_depth, **noise)(jnp.ones((len(branch), 1, 1), branch.dtype), train)
            return branch if self.stochastic_depth == 0 else branch * kept

        y = record("input", nn.LayerNorm(name="ln_1", **norm)(x))
        attention = SelfAttention(
            self.heads, self.qkv_bias, self.attention_dropout, **precision, **noise, name="self_attention"
        )
        y = attention(y, train, lambda weights: record("attention", weights))
        x = x + residual(Dropout(self.dropout, **noise)(y, train))

        y = nn.LayerNorm(name="ln_2", **norm)(x)
        y = activation(self.activation)(nn.Dense(self.hidden, name="mlp_0", **dense)(y))
        y = nn.Dense(x.shape[-1], name="mlp_3", **dense)(Dropout(self.dropout, **noise)(y, train))
        return x + residual(Dropout(self.dropout, **noise)(y, train))


class VisionTransformer(nn.Module):
    """Patches as words of a transformer encoder; the defaults are ViT-B/16.

    Parameters at 1000 classes and 224×224 pixels: Ti/16 5,717,416; S/16 22,050,664; B/16 86,567,656; B/32 88,224,232;
    L/16 304,326,632; L/32 306,535,400. ViT-Lite-7/4 (Hassani et al., 2021, https://arxiv.org/abs/2104.05704), a form
    for 32×32 pixels, at 10 classes: 3,716,874.

    The position embeddings belong to the image size that `init` has seen; `models.load_torch` resamples a file's.

    patch_size: side of a patch in pixels; divides the sides of the images.
    width: channels of a token.
    depth: encoder blocks.
    heads: of attention; divides width.
    hidden: units of each block's MLP.
    pool: what enters the last layer: "cls", the class token, or "mean", the mean patch (then there is no class token).
    activation: of the MLPs, "gelu" being the exact one.
    qkv_bias: the projections to queries, keys and values have biases.
    dropout: rate after the position embeddings, in the MLPs and after each branch.
    attention_dropout: rate of single attention weights.
    stochastic_depth: rate at which the last block's branches fall out; it grows linearly from 0 in the first block.
    epsilon: of LayerNorm.
    axis_name: the pmap axis over which the batch is divided, for dropout; None under jit.

    Feature maps (224×224 input, patch 16): "stem" [batch, 14, 14, width], the embedded patches; "stage1" to "stage4"
    [batch, 14, 14, width], the patches after each quarter of the blocks; "attention1", … [batch, heads, tokens,
    tokens], the weights of each block, rows (queries) sum to 1, the class token first; "last_input" [batch, 14, 14,
    width], the normalised patches that enter the last block's attention: the map for Grad-CAM, as with pool="cls" the
    patches after it have no gradient; "penultimate" [batch, width].
    """

    num_classes: int
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    pool: str = "cls"
    activation: str = "gelu"
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        if self.pool not in ("cls", "mean"):
            raise unknown_name("pool", self.pool, ("cls", "mean"))
        if self.width % self.heads:
            raise UsageError(f"heads must divide width, got {self.heads} and {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """[batch, height, width, channels] -> logits [batch, num_classes], float32; train: dropout is on."""
        x = name_feature_map(self, "stem", self._embed_patches(jnp.asarray(x, self.dtype)))
        grid = x.shape[1:3]
        x = x.reshape(len(x), -1, self.width)
        if self.pool == "cls":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width), self.param_dtype)
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)), x], axis=1)
        x = x + self._position_embedding(x.shape[1]).astype(x.dtype)
        x = Dropout(self.dropout, axis_name=self.axis_name)(x, train)

        ends = {-(-self.depth * i // 4): f"stage{i}" for i in range(1, 5)}  # the last name wins in a shallow network
        if self.depth < 4:
            ends = {i: f"stage{i}" for i in range(1, self.depth + 1)}
        for i in range(1, self.depth + 1):
            x = self._block(i)(x, train, self._recorder(i, grid))
            if i in ends:
                x = self._name_patches(ends[i], x, grid)
        precise = jnp.promote_types(self.dtype, jnp.float32)
        precision = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.LayerNorm(epsilon=self.epsilon, name="ln", **precision)(x)
        x = x[:, 0].astype(precise) if self.pool == "cls" else x.mean(axis=1, dtype=precise)
        x = name_feature_map(self, "penultimate", x)
        head = {"kernel_init": _HEAD_INIT, "dtype": precise, "param_dtype": self.param_dtype, "name": "head"}
        return nn.Dense(self.num_classes, **head)(x)

    def _embed_patches(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns embedding"]:
        """A linear map of each patch, eq. 1 of the paper."""
        side = self.patch_size
        if x.shape[1] % side or x.shape[2] % side or 0 in x.shape[1:3]:
            raise UsageError(f"the sides of the images must be multiples of {side}, got {x.shape[1]}×{x.shape[2]}")
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": _PATCH_INIT}
        return nn.Conv(self.width, (side, side), (side, side), padding="VALID", name="conv_proj", **options)(x)

    def _position_embedding(self, tokens: int) -> Float[Array, "1 tokens width"]:
        if self.has_variable("params", "pos_embedding"):
            known = self.get_variable("params", "pos_embedding").shape[1]
            if known != tokens:
                raise UsageError(
                    f"the position embeddings are for {known} tokens, these images have {tokens}: use images as large "
                    "as those of `init`, or resample with models.vit.resize_position_embedding"
                )
        init = nn.initializers.normal(0.02)
        return self.param("pos_embedding", init, (1, tokens, self.width), self.param_dtype)

    def _block(self, i: int) -> EncoderBlock:
        """The i-th block, from 1."""
        rate = self.stochastic_depth * (i - 1) / max(self.depth - 1, 1)
        return EncoderBlock(
            self.heads, self.hidden, self.activation, self.qkv_bias, self.dropout, self.attention_dropout, rate,
            self.epsilon, self.dtype, self.param_dtype, self.axis_name, name=f"encoder_layer_{i - 1}",
        )  # fmt: skip

    def _recorder(self, i: int, grid: tuple[int, int]) -> Record:
        """Names the maps inside block i; they belong to the network, so that all of its maps lie side by side."""

        def record(name: str, x: Array) -> Array:
            if name == "attention":
                return name_feature_map(self, f"attention{i}", x)
            return self._name_patches("last_input", x, grid) if i == self.depth else x

        return record

    def _name_patches(self, name: str, x: Tokens, grid: tuple[int, int]) -> Tokens:
        """Names the patches among the tokens, as a map [batch, rows, columns, width]."""
        if not feature_maps_wanted(self, name):
            return x  # spares a copy
        first = x.shape[1] - grid[0] * grid[1]
        patches = name_feature_map(self, name, x[:, first:].reshape(len(x), *grid, -1))
        return jnp.concatenate([x[:, :first], patches.reshape(len(x), -1, x.shape[-1])], axis=1)


def resize_position_embedding(
    embedding: Float[Array | np.ndarray, "1 tokens width"],
    grid: tuple[int, int],
    resample: Callable[[Array, tuple[int, int]], Array],
) -> Float[Array, "1 new_tokens width"] | None:
    """Position embeddings for another number of patches: those of the patches resampled, the class token's kept.

    Args:
      embedding: of a square grid, with or without a class token in front.
      grid: rows and columns of the new patches.
      resample: (map [1, rows, columns, width], new (rows, columns)) -> map.

    Returns:
      [1, tokens, width] with as many tokens before the patches as there were.

    Raises:
      UsageError: the old grid is not square.
    """
    tokens = embedding.shape[1]
    side = int(tokens**0.5)
    first = tokens - side**2
    if first > 1:
        raise UsageError(f"{tokens} position embeddings are no square grid with at most one token in front")
    patches = resample(jnp.asarray(embedding[:, first:]).reshape(1, side, side, -1), grid)
    return jnp.concatenate([embedding[:, :first], patches.reshape(1, -1, embedding.shape[-1])], axis=1)


_TINY = {"width": 192, "heads": 3, "hidden": 768}  # Touvron et al. (2021), https://arxiv.org/abs/2012.12877
_SMALL = {"width": 384, "heads": 6, "hidden": 1536}
_LARGE = {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}
for size, fields in {"ti": _TINY, "s": _SMALL, "b": {}, "l": _LARGE}.items():
    for patch in (16,) if size in ("ti", "s") else (16, 32):
        register(f"vit_{size}_{patch}", patch_size=patch, **fields)(VisionTransformer)
register(
    "vit_lite_7_4_cifar", patch_size=4, width=256, depth=7, heads=4, hidden=512, qkv_bias=False
)(VisionTransformer)  # fmt: skip
