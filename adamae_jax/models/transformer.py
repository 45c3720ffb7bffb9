"""Pre-norm transformer blocks, stacked and scanned.

The parameters of all blocks of a stack are stored together, ``[depth, ...]``, so that compilation
time does not grow with depth; unrolling the scan is an execution option.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from adamae_jax.errors import UserError
from adamae_jax.models.attention import ATTENDED, AttentionImplementation, attend
from adamae_jax.models.dense import PRODUCT, Dense, add_bias, product
from adamae_jax.models.initializers import INITIALIZATIONS, Initialization
from adamae_jax.models.sharding import BATCH, TENSOR, constrain

# One key per example: what is random for an example never depends on its neighbours, so that a
# batch may be cut over hosts, devices and microbatches without changing anything.
ExampleKeys = Key[Array, "b"]

# What the backward pass computes again instead of keeping it: nothing; norms, activations and the
# like, but no product of matrices and no `blockwise_attention`; whole blocks.
Remat = Literal["none", "elementwise", "full"]


@dataclasses.dataclass(frozen=True)
class TransformerSpec:
    """The shape of a stack of blocks and the way it is computed.

    Attributes:
      width: token width, ``d``.
      depth: number of blocks.
      num_heads: attention heads; must divide ``width``.
      mlp_ratio: hidden width of the MLP over ``width``.
      attention_bias: which of the query, key and value projections have a bias, as letters.
      norm_epsilon: epsilon of the layer norms.
      layer_scale: initial value of a learned factor per channel on each branch; 0 for none.
      initialization: one of `initializers.INITIALIZATIONS`.
      dropout: rate after the attention projection and after the MLP's second layer, in training.
      drop_path: rate at which an example skips a branch of the last block, in training; it grows
        from 0 in the first block by equal steps (stochastic depth, arXiv 1603.09382).
      attention: False leaves the attention out: blocks that see one token at a time.
      dtype: the type of the matmuls; norms, softmax and the sums along the residual path are
        float32.
      gradient_dtype: the type that the gradients of kernels and biases are summed in.
      remat: what the backward pass computes again instead of keeping it, see `Remat`.
      unroll: blocks per iteration of the scan.
      attention_implementation: see `adamae_jax.models.attention.attend`.

    Raises:
      UserError: where heads do not divide the width.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    attention_bias: Literal["", "qv", "qkv"] = "qv"
    norm_epsilon: float = 1e-6
    layer_scale: float = 0.0
    initialization: str = "videomae"
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: bool = True
    dtype: DTypeLike = jnp.float32
    gradient_dtype: DTypeLike = jnp.float32
    remat: Remat = "none"
    unroll: int = 1
    attention_implementation: AttentionImplementation = "auto"

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise UserError(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}: choose heads "
                "that divide the width"
            )

    @property
    def init(self) -> Initialization:
        """The initial distributions."""
        return INITIALIZATIONS[self.initialization]


class ExampleDropout(nn.Module):
    """Dropout with one key per example."""

    rate: float

    def __call__(self, x: Float[Array, "b n d"], keys: ExampleKeys | None) -> Float[Array, "b n d"]:
        """Drops elements of ``x``; the identity where ``keys`` is None or the rate is zero."""
        if keys is None or self.rate == 0.0:
            return x
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class DropPath(nn.Module):
    """Leaves a branch out for whole examples, and makes up for it in the others."""

    def __call__(
        self, x: Float[Array, "b n d"], rate: Float[Array, ""], keys: ExampleKeys | None
    ) -> Float[Array, "b n d"]:
        """Drops examples of ``x`` at ``rate``; the identity where ``keys`` is None."""
        if keys is None:
            return x
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(keys)
        return jnp.where(keep[:, None, None], x / (1.0 - rate), 0.0).astype(x.dtype)


FIRST_TOKEN = "first_token_attention"


def first_token_attention(
    query: Float[Array, "b n h k"], key: Float[Array, "b n h k"]
) -> Float[Array, "b h n"]:
    """What the first token attends to, in float32."""
    first, key = query[:, 0].astype(jnp.float32), key.astype(jnp.float32)
    return jax.nn.softmax(jnp.einsum("bhk,bnhk->bhn", first, key) * key.shape[-1] ** -0.5)


class Attention(nn.Module):
    """Multi-head self-attention with a fused kernel ``[d, 3, heads, head_dim]``.

    Asked for the collection ``intermediates``, it also gives what the first token attends to.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], key_valid: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attends over the tokens whose ``key_valid`` is true (all, where it is None)."""
        spec = self.spec
        head_shape = (spec.num_heads, spec.width // spec.num_heads)
        kernel = self.param("qkv_kernel", spec.init.qkv, (spec.width, 3, *head_shape))
        # Heads stay an axis in both: merged with another, a mesh could not split it, and the kernel
        # would be gathered.
        fused = product(x.astype(spec.dtype), kernel, spec.dtype, spec.gradient_dtype)
        fused = constrain(fused, BATCH, None, None, TENSOR)
        query, key, value = (fused[:, :, index] for index in range(3))
        if spec.attention_bias:
            shape = (len(spec.attention_bias), *head_shape)
            bias = self.param("qkv_bias", nn.initializers.zeros, shape)
            heads = {"q": query, "k": key, "v": value}
            for letter, row in zip(spec.attention_bias, bias, strict=True):
                heads[letter] = add_bias(heads[letter], row, spec.gradient_dtype)
            query, key, value = heads.values()
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", FIRST_TOKEN, first_token_attention(query, key))
        mixed = attend(query, key, value, key_valid, implementation=spec.attention_implementation)
        return Dense(
            spec.width,
            kernel_init=spec.init.dense,
            dtype=spec.dtype,
            gradient_dtype=spec.gradient_dtype,
            name="projection",
        )(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers around an exact GELU."""

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Mixes the channels of each token."""
        dense = functools.partial(
            Dense,
            kernel_init=self.spec.init.dense,
            dtype=self.spec.dtype,
            gradient_dtype=self.spec.gradient_dtype,
        )
        x = dense(int(self.spec.width * self.spec.mlp_ratio), name="fc1")(x)
        x = constrain(x, BATCH, None, TENSOR)
        x = nn.gelu(x, approximate=False)
        return dense(self.spec.width, name="fc2")(x)


class LayerNorm(nn.Module):
    """Layer norm in float32, with the two-pass variance that PyTorch computes."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalises over the last axis; returns ``dtype``."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normalised * scale + bias).astype(self.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239); the identity where its start is 0."""

    start: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Multiplies the channels of ``x``."""
        if self.start == 0.0:
            return x
        scale = self.param("scale", nn.initializers.constant(self.start), (x.shape[-1],))
        return (x * scale).astype(x.dtype)  # the product and its gradient in float32


class Block(nn.Module):
    """One pre-norm block: attention, then MLP, each behind a norm and added to its input."""

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        layer: Int[Array, ""],
        key_valid: Bool[Array, "b n"] | None,
        keys: ExampleKeys | None,
    ) -> tuple[Float[Array, "b n d"], None]:
        """A scan body: carries the tokens; ``layer`` is the block's index in its stack."""
        spec = self.spec
        x = constrain(x, BATCH)

        def branch_keys(branch: int) -> ExampleKeys | None:
            if keys is None:
                return None
            return jax.vmap(lambda key: jax.random.fold_in(key, 2 * layer + branch))(keys)

        def dropped(y: Float[Array, "b n d"], branch: int) -> Float[Array, "b n d"]:
            y = ExampleDropout(spec.dropout)(y, branch_keys(branch))
            if not spec.drop_path:
                return y
            rate = spec.drop_path * layer / max(1, spec.depth - 1)
            return DropPath()(y, rate, branch_keys(branch + 2 * spec.depth))

        if spec.attention:
            y = LayerNorm(spec.norm_epsilon, spec.dtype, name="norm1")(x)
            y = LayerScale(spec.layer_scale, name="layer_scale1")(
                Attention(spec, name="attention")(y, key_valid)
            )
            x = x + dropped(y, 0)
        y = LayerNorm(spec.norm_epsilon, spec.dtype, name="norm2")(x)
        y = LayerScale(spec.layer_scale, name="layer_scale2")(Mlp(spec, name="mlp")(y))
        return x + dropped(y, 1), None  # float32: x is


class Transformer(nn.Module):
    """A scanned stack of `Block`; parameters are stacked ``[depth, ...]`` under ``blocks``."""

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        key_valid: Bool[Array, "b n"] | None = None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "b n d"]:
        """Runs the blocks in turn; the result is float32.

        Args:
          x: tokens.
          key_valid: tokens that may be attended to; None for all.
          keys: one key per example for dropout; None turns dropout off.
        """
        spec = self.spec
        if spec.depth == 0:
            return x
        block = Block
        if spec.remat != "none":
            kept = (PRODUCT, ATTENDED) if spec.remat == "elementwise" else ()
            policy = jax.checkpoint_policies.save_only_these_names(*kept)
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        stack = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=spec.depth,
            unroll=min(spec.unroll, spec.depth),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(spec, name="blocks")(
            x.astype(jnp.float32), jnp.arange(spec.depth), key_valid, keys
        )
        return x
