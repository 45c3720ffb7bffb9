"""Attention whose scores never leave a TPU: JAX's splash attention, written in Pallas.

The kernel takes rows whose lengths are multiples of its blocks, one example at a time, on one
device. Here rows are filled up, examples become an axis of the kernel's grid, and on a mesh each
device runs it on its own examples and heads: XLA cannot split a kernel by itself.

Importing this module imports Pallas; `adamae_jax.models.attention` does so where it is asked for.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float

from adamae_jax.models.attention import ATTENDED
from adamae_jax.models.sharding import BATCH, TENSOR, fitting

# Values in a vector register's last dimension, which blocks are multiples of.
LANES = 128
# Rows up to this length are one block: with `LANES` keys at a time, its scores and what is kept
# beside them fit a TPU's vector memory. A row of 1568 is a block of 1664.
LONGEST_BLOCK = 1792


def pallas_attention(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    key_valid: Bool[Array, "b m"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b n h k"]:
    """Attention by a kernel for TPUs; see `adamae_jax.models.attention.attend`.

    Scores and softmax are float32. The gradient computes scores again from queries, keys and the
    logarithm of each row's sum; that and the result are called `ATTENDED`.

    Args:
      query: what asks.
      key: what is compared with it.
      value: what is mixed.
      key_valid: the keys that may be attended to; None for all. Each example needs one.
      interpret: run the kernel's steps as plain JAX, on any device: slow, for tests.
    """

    def on_a_device(query: Array, key: Array, value: Array, key_valid: Array | None) -> Array:
        return _attend(query, key, value, key_valid, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return on_a_device(query, key, value, key_valid)
    batch = fitting(query.shape[0], BATCH, mesh.shape)
    rows = jax.P(batch, None, fitting(query.shape[2], TENSOR, mesh.shape))
    return jax.shard_map(
        on_a_device,
        in_specs=(rows, rows, rows, jax.P(batch)),
        out_specs=rows,
        check_vma=False,  # kernels do not say over which axes their results vary
    )(query, key, value, key_valid)


def block_size(length: int) -> int:
    """Returns how many tokens of a row are a block: equal parts, multiples of `LANES`."""
    parts = math.ceil(length / LONGEST_BLOCK)
    return LANES * math.ceil(length / parts / LANES)


def _attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    key_valid: Bool[Array, "b m"] | None,
    interpret: bool,
) -> Float[Array, "b n h k"]:
    batch, length, heads, width = query.shape
    queries, keys = block_size(length), block_size(key.shape[1])
    # The kernel does not scale. In the root's own type first: of most widths it is no power of two.
    query = (query.astype(jnp.float32) * width**-0.5).astype(query.dtype)
    rows = (_filled(query, queries), _filled(key, keys), _filled(value, keys))
    shape = (rows[0].shape[2], rows[1].shape[2])
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask(shape)] * heads),
        block_sizes=splash.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_kv_compute=LANES,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_kv_dkv_compute=LANES,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    segments = None
    if key_valid is not None or shape[1] > key.shape[1]:
        # Queries attend to the keys of their own segment; what fills rows up is in another.
        if key_valid is None:
            key_valid = jnp.ones(key.shape[:2], bool)
        of_keys = jnp.pad(key_valid.astype(jnp.int32), ((0, 0), (0, shape[1] - key.shape[1])))
        segments = splash.SegmentIds(q=jnp.ones((batch, shape[0]), jnp.int32), kv=of_keys)
    result = jax.vmap(kernel)(*rows, segments)
    return jnp.swapaxes(result, 1, 2)[:, :length]


def _filled(x: Float[Array, "b n h k"], block: int) -> Float[Array, "b h filled k"]:
    """Heads first, and rows filled up with zeros to whole blocks."""
    x = jnp.swapaxes(x, 1, 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))
