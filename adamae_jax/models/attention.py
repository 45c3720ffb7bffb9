"""Attention over short and long rows of tokens, by one of several implementations.

`blockwise_attention` is the one that keeps no scores: its memory grows with the length of a row,
not with the square of it (after arXiv 2205.14135). It is plain JAX and runs everywhere. On TPUs,
`adamae_jax.models.pallas_attention` does the same on the chip alone.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from adamae_jax.models.sharding import platform

AttentionImplementation = Literal["auto", "xla", "blockwise", "cudnn", "pallas"]

ATTENDED = "attended"  # what the results of attention are called where some are to be kept

# Rows up to this length are one block, and are left to XLA on accelerators: their scores are small.
SHORT_ROW = 512
# Queries in a block of a longer row: large enough for matmuls, small enough for caches. Multiples
# of 8 keep the blocks aligned on TPUs; a row of 1568 is 7 blocks with nothing left over.
BLOCK, ALIGNMENT = 224, 8

# Products of the compute type, summed in float32.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    key_valid: Bool[Array, "b m"] | None = None,
    *,
    implementation: AttentionImplementation = "auto",
) -> Float[Array, "b n h k"]:
    """Softmax attention, scaled by the root of the head's width.

    Args:
      query: what asks.
      key: what is compared with it.
      value: what is mixed.
      key_valid: the keys that may be attended to; None for all. Each example needs one.
      implementation: "xla" and "cudnn" are those of `jax.nn.dot_product_attention`; "blockwise" is
        `blockwise_attention`; "pallas" is `pallas_attention` for rows of more than `SHORT_ROW`
        keys, and "xla" for others; "auto" chooses one, see `choose`.
    """
    if implementation == "auto":
        meshed = not jax.sharding.get_abstract_mesh().empty
        implementation = choose(platform(), key.shape[1], meshed=meshed)
    if implementation == "pallas" and key.shape[1] <= SHORT_ROW:
        implementation = "xla"
    if implementation == "blockwise":
        return blockwise_attention(query, key, value, key_valid)
    if implementation == "pallas":
        from adamae_jax.models.pallas_attention import pallas_attention  # imports Pallas

        return pallas_attention(query, key, value, key_valid)
    assert implementation != "auto"  # `choose` names another
    mask = None if key_valid is None else key_valid[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)


def choose(backend: str, length: int, *, meshed: bool) -> AttentionImplementation:
    """Returns what "auto" stands for.

    On other backends than CPU it saves memory and traffic where rows are long, as compiled;
    nothing has been timed on a TPU.

    Args:
      backend: see `platform`.
      length: number of keys.
      meshed: whether a mesh is set. Without one, devices that arrays are split over are not known,
        and a kernel is no program that XLA could split.
    """
    if backend == "cpu":
        return "blockwise"
    if length <= SHORT_ROW:
        return "xla"
    return "pallas" if backend == "tpu" and meshed else "blockwise"


def block_size(length: int) -> int:
    """Returns how many queries of a row are computed at once."""
    if length <= SHORT_ROW:
        return length
    block = math.ceil(length / math.ceil(length / BLOCK))
    return ALIGNMENT * math.ceil(block / ALIGNMENT)


@jax.custom_vjp
def blockwise_attention(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    key_valid: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h k"]:
    """Attention whose scores exist for one block of queries at a time; see `attend`.

    The gradient computes them again, from queries, keys, and each row's largest score and sum of
    exponentials. Batch and heads stay axes of every array, so that a mesh may split them. Softmax
    and sums are float32; an example without any valid key gets zeros.
    """
    return _forward(query, key, value, key_valid)[0]


def _forward(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    key_valid: Bool[Array, "b m"] | None,
) -> tuple[Float[Array, "b n h k"], Any]:
    """The result, and what the gradient needs."""
    scale = query.shape[-1] ** -0.5
    keys, values = _heads_first(key), _heads_first(value)

    def block(_: None, queries: Array) -> tuple[None, tuple[Array, Array, Array]]:
        scores = _scores(queries, keys, key_valid)
        largest = scores.max(-1, keepdims=True)
        weights = _only_valid(jnp.exp((scores - largest) * scale), key_valid)
        # At least 1, the largest score's own, unless no key is valid.
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
        mixed = _product("bhnm,bhmk->bhnk", weights.astype(value.dtype), values) / total
        return None, (mixed.astype(query.dtype), largest, total)

    _, (mixed, largest, total) = jax.lax.scan(block, None, _blocks(query))
    result = checkpoint_name(_rows(mixed, query.shape[1]), ATTENDED)
    largest, total = checkpoint_name((largest, total), ATTENDED)
    # Both apart: the logarithm of a row's sum would lose the bits that large scores need.
    return result, (query, key, value, key_valid, result, largest, total)


def _backward(
    saved: Any, gradient: Float[Array, "b n h k"]
) -> tuple[Float[Array, "b n h k"], Float[Array, "b m h k"], Float[Array, "b m h k"], None]:
    """The gradients of query, key and value."""
    query, key, value, key_valid, result, largest, total = saved
    dtype, scale = query.dtype, query.shape[-1] ** -0.5
    keys, values = _heads_first(key), _heads_first(value)
    # For each query, the gradient of its result times the result: softmax's own gradient needs it.
    inner = _product("bnhk,bnhk->bnh", gradient, result)[..., None]

    def block(sums: tuple[Array, Array], parts: Any) -> tuple[tuple[Array, Array], Array]:
        queries, gradients, largest, total, inners = parts
        scores = _scores(queries, keys, key_valid)
        weights = _only_valid(jnp.exp((scores - largest) * scale) / total, key_valid)
        of_weights = _product("bhnk,bhmk->bhnm", gradients, values)
        of_scores = (weights * (of_weights - inners)).astype(dtype)
        # Summed with the keys last: what CPUs multiply fastest.
        of_keys = sums[0] + _product("bhnk,bhnm->bhkm", queries, of_scores)
        of_values = sums[1] + _product("bhnk,bhnm->bhkm", gradients, weights.astype(dtype))
        of_queries = _product("bhnm,bhmk->bhnk", of_scores, keys) * scale
        return (of_keys, of_values), of_queries.astype(dtype)

    zeros = jnp.zeros_like(jnp.swapaxes(keys, 2, 3), jnp.float32)
    parts = (_blocks(query), _blocks(gradient.astype(dtype)), largest, total, _blocks(inner))
    (of_keys, of_values), of_queries = jax.lax.scan(block, (zeros, zeros), parts)
    return (
        _rows(of_queries, query.shape[1]),
        jnp.einsum("bhkm->bmhk", of_keys * scale).astype(key.dtype),
        jnp.einsum("bhkm->bmhk", of_values).astype(value.dtype),
        None,
    )


blockwise_attention.defvjp(_forward, _backward)


def _scores(
    queries: Float[Array, "b h n k"],
    keys: Float[Array, "b h m k"],
    key_valid: Bool[Array, "b m"] | None,
) -> Float[Array, "b h n m"]:
    """Products, not scaled yet; the lowest number where a key is not valid."""
    scores = _product("bhnk,bhmk->bhnm", queries, keys)
    if key_valid is None:
        return scores
    return jnp.where(key_valid[:, None, None], scores, jnp.finfo(jnp.float32).min)


def _only_valid(
    weights: Float[Array, "b h n m"], key_valid: Bool[Array, "b m"] | None
) -> Float[Array, "b h n m"]:
    return weights if key_valid is None else jnp.where(key_valid[:, None, None], weights, 0.0)


def _heads_first(x: Float[Array, "b n h k"]) -> Float[Array, "b h n k"]:
    return jnp.swapaxes(x, 1, 2)


def _blocks(x: Float[Array, "b n h k"]) -> Float[Array, "blocks b h block k"]:
    """Cuts rows into blocks; the last one is filled up with zeros, which add to no sum."""
    batch, length, heads, width = x.shape
    block = block_size(length)
    x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    return jnp.einsum("bcnhk->cbhnk", x.reshape(batch, -1, block, heads, width))


def _rows(x: Float[Array, "blocks b h block k"], length: int) -> Float[Array, "b n h k"]:
    """Puts blocks together again, without what filled the last one."""
    x = jnp.einsum("cbhnk->bcnhk", x)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
