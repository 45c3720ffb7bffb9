"""What the authors' code computes, written a second time, for sizes of which there is no file.

Plain functions of the authors' own state dicts in PyTorch's layouts: loops over layers and, where
they do so, the whole sequence, unshuffled and padded with mask tokens. Shares nothing with
`adamae_jax`, and agrees with the authors' files (`tests.parity.test_variants`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = Mapping[str, Any]
Meta = Mapping[str, Any]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def linear(w: Weights, name: str, x: Any) -> Any:
    """``nn.Linear``, with or without a bias."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def layer_norm(w: Weights, name: str, x: Any, epsilon: float) -> Any:
    """``nn.LayerNorm``."""
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def queries_keys_values(w: Weights, name: str, x: Any) -> list[Any]:
    """In the three ways in which the authors hold them."""
    if f"{name}.q.weight" in w:
        return [linear(w, f"{name}.{letter}", x) for letter in "qkv"]
    fused = linear(w, f"{name}.qkv", x)
    if f"{name}.q_bias" in w:
        query, value = w[f"{name}.q_bias"], w[f"{name}.v_bias"]
        fused = fused + jnp.concatenate([query, jnp.zeros_like(query), value])
    return jnp.split(fused, 3, axis=-1)


def attention(w: Weights, name: str, x: Any, heads: int) -> tuple[Any, Any]:
    """Multi-head self-attention and its softmaxed maps ``[b, heads, n, n]``."""
    batch, length, width = x.shape
    query, key, value = (
        part.reshape(batch, length, heads, width // heads).swapaxes(1, 2)
        for part in queries_keys_values(w, name, x)
    )
    maps = jax.nn.softmax(query @ key.swapaxes(-1, -2) / (width // heads) ** 0.5, axis=-1)
    mixed = (maps @ value).swapaxes(1, 2).reshape(batch, length, width)
    return linear(w, f"{name}.proj", mixed), maps


def block(w: Weights, name: str, x: Any, heads: int, epsilon: float) -> tuple[Any, Any]:
    """A pre-norm block, with LayerScale where there is one, and its attention maps."""
    y, maps = attention(w, f"{name}.attn", layer_norm(w, f"{name}.norm1", x, epsilon), heads)
    x = x + w.get(f"{name}.gamma_1", 1.0) * y
    y = linear(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.norm2", x, epsilon))
    y = linear(w, f"{name}.mlp.fc2", y * (1 + jax.scipy.special.erf(y / 2**0.5)) / 2)
    return x + w.get(f"{name}.gamma_2", 1.0) * y, maps


def blocks(w: Weights, name: str, x: Any, heads: int, epsilon: float) -> tuple[Any, Any]:
    """All blocks ``name.0``, ``name.1``, ... and the maps of the last."""
    maps, layer = None, 0
    while f"{name}.{layer}.norm1.weight" in w:
        x, maps = block(w, f"{name}.{layer}", x, heads, epsilon)
        layer += 1
    return x, maps


def embed(w: Weights, name: str, pixels: Any) -> Any:
    """The patch embedding as a strided convolution of ``[B, T, H, W, C]``, channels first."""
    weight = w[f"{name}.weight"]
    if weight.ndim == 4:  # images
        weight = weight[:, :, None]
    x = jnp.moveaxis(pixels, -1, 1)
    x = jax.lax.conv_general_dilated(x, weight, weight.shape[2:], "VALID")
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2) + w[f"{name}.bias"]


def table_1d(count: int, width: int) -> np.ndarray:
    """VideoMAE's fixed table."""
    rows = [
        [place / 10000 ** (2 * (channel // 2) / width) for channel in range(width)]
        for place in range(count)
    ]
    table = np.asarray(rows)
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return table.astype(np.float32)


def table_2d(height: int, width: int, channels: int) -> np.ndarray:
    """MAE's fixed table with its row of zeros for the class token."""
    omega = [10000 ** (-i / (channels / 4)) for i in range(channels // 4)]
    rows = [[0.0] * channels]
    for row in range(height):
        for column in range(width):
            rows.append(
                [
                    function(place * frequency)
                    for place in (column, row)
                    for function in (np.sin, np.cos)
                    for frequency in omega
                ]
            )
    return np.asarray(rows, np.float32)


def patchify(frames: Any, depth: int, size: int) -> Any:
    """``[B, T, H, W, C]`` to ``[B, N, depth * size * size * C]``."""
    batch, time, height, width, channels = frames.shape
    x = frames.reshape(
        *(batch, time // depth, depth, height // size, size, width // size, size, channels)
    )
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, -1, depth * size * size * channels)


def normalized(video: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """uint8 to the model's input."""
    return ((video / 255.0 - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def at(rows: Any, indices: np.ndarray) -> Any:
    """Each example's rows at its indices."""
    return jnp.take_along_axis(rows, jnp.asarray(indices)[..., None], axis=1)


def videomae_targets(video: np.ndarray, masked: np.ndarray, meta: Meta) -> np.ndarray:
    """Pixels in [0, 1], per tubelet and colour channel."""
    tubelets = patchify(video / 255.0, meta["tubelet_size"], meta["patch_size"])
    tubelets = np.take_along_axis(tubelets, masked[..., None], axis=1)
    values = tubelets.reshape(*tubelets.shape[:2], -1, video.shape[-1])
    mean, std = values.mean(2, keepdims=True), values.std(2, ddof=1, keepdims=True)
    return ((values - mean) / (std + 1e-6)).reshape(tubelets.shape).astype(np.float32)


def videomae_predictions(
    w: Weights, tokens: Any, visible: np.ndarray, masked: np.ndarray, meta: Meta
) -> Any:
    """VideoMAE's and AdaMAE's: what the decoder says of the masked tokens."""
    count, width = tokens.shape[1:]
    epsilon = _epsilons(meta)
    x = at(tokens + table_1d(count, width), visible)
    x, _ = blocks(w, "encoder.blocks", x, meta["encoder"]["heads"], epsilon["encoder"])
    x = linear(w, "encoder_to_decoder", layer_norm(w, "encoder.norm", x, epsilon["encoder"]))
    table = jnp.broadcast_to(table_1d(count, x.shape[-1]), (len(x), count, x.shape[-1]))
    queries = w["mask_token"] + at(table, masked)
    x = jnp.concatenate([x + at(table, visible), queries], axis=1)
    x, _ = blocks(w, "decoder.blocks", x, meta["decoder"]["heads"], epsilon["decoder"])
    x = layer_norm(w, "decoder.norm", x[:, -masked.shape[1] :], epsilon["decoder"])
    return linear(w, "decoder.head", x)


def token_probabilities(w: Weights, tokens: Any, meta: Meta) -> Any:
    """AdaMAE's sampling network."""
    name, heads = "encoder.get_token_probs", meta["sampler"]["heads"]
    x = tokens + w["encoder.pos_embed_probs"]
    x, _ = blocks(w, name, x, heads, meta["norm_eps"]["sampler"])
    return jax.nn.softmax(linear(w, f"{name}.{meta['sampler'].get('depth', 1)}", x)[..., 0])


def _epsilons(meta: Meta) -> Mapping[str, float]:
    epsilon = meta["norm_eps"]
    return epsilon if isinstance(epsilon, dict) else {"encoder": epsilon, "decoder": epsilon}


def positions(w: Weights, name: str, time: int) -> tuple[Any, Any]:
    """MAE-ST's and MAE's rows of the class token (None without one) and of the patches."""
    has_class = "cls_token" in w
    if f"{name}_spatial" in w:
        spatial, temporal = w[f"{name}_spatial"][0], w[f"{name}_temporal"][0]
        rows = jnp.tile(spatial, (time, 1)) + jnp.repeat(temporal, len(spatial), axis=0)
        return w[f"{name}_class"][0] if has_class else None, rows
    table = w[name][0]
    return (table[:1], table[1:]) if has_class else (None, table)


def with_class(token: Any, row: Any, x: Any) -> Any:
    """A class token and its position in front."""
    return jnp.concatenate([jnp.broadcast_to(token + row, (len(x), 1, x.shape[-1])), x], axis=1)


def mae_predictions(
    w: Weights, pixels: Any, shuffle: np.ndarray, visible: int, meta: Meta, scale: Any = None
) -> Any:
    """MAE's, AutoMAE's and MAE-ST's: a prediction for every token, in the original order.

    Args:
      w: their state dict.
      pixels: normalised.
      shuffle: the tokens in the order of their noise.
      visible: how many of them are seen.
      meta: the sizes.
      scale: AutoMAE's noise, which carries the gradient to its generator.
    """
    epsilon = meta["norm_eps"]
    time = pixels.shape[1] // meta.get("tubelet_size", 1)
    class_row, rows = positions(w, "pos_embed", time)
    x = embed(w, "patch_embed.proj", pixels) + rows
    if scale is not None:
        s = scale[..., None]
        x = s * x + jax.lax.stop_gradient(1 - s) * x
    x = at(x, shuffle[:, :visible])
    has_class = class_row is not None
    if has_class:
        x = with_class(w["cls_token"][0], class_row, x)
    x, _ = blocks(w, "blocks", x, meta["encoder"]["heads"], epsilon)
    x = linear(w, "decoder_embed", layer_norm(w, "norm", x, epsilon))
    kept = x[:, :1]
    if has_class:
        x = x[:, 1:]
    missing = shuffle.shape[1] - visible
    mask_tokens = jnp.broadcast_to(w["mask_token"], (len(x), missing, x.shape[-1]))
    x = at(jnp.concatenate([x, mask_tokens], axis=1), np.argsort(shuffle, axis=1))
    class_row, rows = positions(w, "decoder_pos_embed", time)
    x = x + rows
    if "decoder_cls_token" in w:
        x = with_class(w["decoder_cls_token"][0], class_row, x)
    elif has_class:
        x = jnp.concatenate([kept + class_row, x], axis=1)
    x, _ = blocks(w, "decoder_blocks", x, meta["decoder"]["heads"], epsilon)
    x = linear(w, "decoder_pred", layer_norm(w, "decoder_norm", x, epsilon))
    return x[:, int(has_class) :]


def mae_loss(pred: Any, pixels: np.ndarray, mask: np.ndarray, meta: Meta) -> Any:
    """The mean over masked patches of the squared distance from their normalised pixels."""
    frames, depth = pixels, meta.get("tubelet_size", 1)
    count = meta.get("predicted_frames", pixels.shape[1])
    if count != pixels.shape[1]:
        frames = pixels[:, np.linspace(0, pixels.shape[1] - 1, count).astype(int)]
        depth = depth * count // pixels.shape[1]
    target = patchify(frames.astype(np.float64), depth, meta["patch_size"])
    if meta.get("norm_pix", True):
        mean, variance = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        target = (target - mean) / np.sqrt(variance + 1e-6)
    error = ((pred - target.astype(np.float32)) ** 2).mean(-1)
    return (error * mask).sum() / mask.sum()


def logits(w: Weights, pixels: Any, meta: Meta) -> Any:
    """VideoMAE's and MAE-ST's classifier: the mean over tokens, a norm, a linear layer."""
    epsilon, heads = meta["norm_eps"], meta["encoder"]["heads"]
    x = embed(w, "patch_embed.proj", pixels)
    if "fc_norm.weight" in w:
        x, _ = blocks(w, "blocks", x + table_1d(*x.shape[1:]), heads, epsilon)
        return linear(w, "head", layer_norm(w, "fc_norm", x.mean(1), epsilon))
    class_row, rows = positions(w, "pos_embed", pixels.shape[1] // meta["tubelet_size"])
    x = x + rows
    if class_row is not None:
        x = with_class(w["cls_token"][0], class_row, x)
    x, _ = blocks(w, "blocks", x, heads, epsilon)
    # The first is left out even where it is a patch.
    return linear(w, "head", layer_norm(w, "norm", x[:, 1:].mean(1), epsilon))


def class_attention(w: Weights, pixels: Any, heads: int, epsilon: float) -> Any:
    """AutoMAE's frozen ViT: the last block's attention of the class token to the patches."""
    class_row, rows = positions(w, "pos_embed", 1)
    x = with_class(w["cls_token"][0], class_row, embed(w, "patch_embed.proj", pixels) + rows)
    return blocks(w, "blocks", x, heads, epsilon)[1][:, :, 0, 1:]


def convolve(x: Any, weight: Any, stride: int, padding: int) -> Any:
    """``nn.Conv2d`` without a bias, on ``[B, C, H, W]``."""
    return jax.lax.conv_general_dilated(x, weight, (stride, stride), [(padding, padding)] * 2)


def mask_probability(w: Weights, maps: Any, gumbel: Any, tau: float) -> Any:
    """AutoMAE's generator: attention ``[B, heads, h, w]`` to a soft mask over patches."""
    for layer in (0, 2):
        name = f"scorer_pred.main.{layer}"
        maps = convolve(maps, w[f"{name}.weight"], 1, 1) + w[f"{name}.bias"][:, None, None]
        maps = jax.nn.relu(maps) if layer == 0 else maps
    scores = jax.nn.log_softmax(maps.reshape(len(maps), -1))
    return jax.nn.softmax((scores + gumbel) / tau)


def verdict(w: Weights, buffers: Weights, mask: Any) -> Any:
    """AutoMAE's discriminator of ``[B, 1, h, w]``, its spectral norms held."""
    for layer, stride, padding in ((1, 2, 1), (2, 2, 1), (3, 1, 0)):
        weight, name = w[f"conv{layer}.0.weight_orig"], f"conv{layer}.0"
        norm = buffers[f"{name}.weight_u"] @ (
            weight.reshape(len(weight), -1) @ buffers[f"{name}.weight_v"]
        )
        mask = convolve(mask, weight / norm, stride, padding)
        mask = jnp.where(mask > 0, mask, 0.2 * mask) if layer < 3 else mask
    return mask
