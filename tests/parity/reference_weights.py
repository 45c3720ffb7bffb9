"""The authors' state dicts by name and shape, and random values for them."""

import numpy as np

from tests.parity.parts import Meta

Shapes = dict[str, tuple[int, ...]]


def block_shapes(name: str, width: int, depth: int, style: str) -> Shapes:
    """The blocks' weights; ``style`` says in which way the authors hold queries, keys and values.

    "qv", "qkv" and "" are fused kernels with these biases, "separate" has three of each; "scaled"
    is "qv" with LayerScale.
    """
    shapes: Shapes = {
        **{f"norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        **{"attn.proj.weight": (width, width), "attn.proj.bias": (width,)},
        **{"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)},
        **{"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)},
    }
    if style == "separate":
        shapes |= {f"attn.{letter}.weight": (width, width) for letter in "qkv"}
        shapes |= {f"attn.{letter}.bias": (width,) for letter in "qkv"}
    else:
        shapes["attn.qkv.weight"] = (3 * width, width)
    if style == "qkv":
        shapes["attn.qkv.bias"] = (3 * width,)
    if style in ("qv", "scaled"):
        shapes |= {"attn.q_bias": (width,), "attn.v_bias": (width,)}
    if style == "scaled":
        shapes |= {"gamma_1": (width,), "gamma_2": (width,)}
    return {
        f"{name}.{layer}.{row}": shape for layer in range(depth) for row, shape in shapes.items()
    }


def pair(name: str, *shape: int) -> Shapes:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def grid_of(meta: Meta) -> tuple[int, int, int]:
    """Tokens along time, height and width."""
    size = meta["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    time = meta.get("num_frames", 1) // meta.get("tubelet_size", 1)
    return time, height // meta["patch_size"], width // meta["patch_size"]


def stack(meta: Meta, part: str, name: str, style: str) -> Shapes:
    """The blocks of encoder or decoder."""
    return block_shapes(name, meta[part]["dim"], meta[part]["depth"], style)


def video_patch(meta: Meta, predicted: bool = False) -> tuple[int, ...]:
    """Channels, depth, height and width of a tubelet, or of one that is predicted."""
    depth, size = meta.get("tubelet_size", 1), meta["patch_size"]
    if predicted and "predicted_frames" in meta:
        depth = depth * meta["predicted_frames"] // meta["num_frames"]
    return (3, depth, size, size)


def videomae_shapes(meta: Meta, style: str) -> Shapes:
    """VideoMAE's and AdaMAE's autoencoder."""
    width, inner, patch = meta["encoder"]["dim"], meta["decoder"]["dim"], video_patch(meta)
    return {
        **pair("encoder.patch_embed.proj", width, *patch),
        **stack(meta, "encoder", "encoder.blocks", style),
        **pair("encoder.norm", width),
        "encoder_to_decoder.weight": (inner, width),
        "mask_token": (1, 1, inner),
        **stack(meta, "decoder", "decoder.blocks", style),
        **pair("decoder.norm", inner),
        **pair("decoder.head", int(np.prod(patch)), inner),
    }


def sampler_shapes(meta: Meta) -> Shapes:
    """AdaMAE's sampling network."""
    width, depth = meta["encoder"]["dim"], meta["sampler"].get("depth", 1)
    name = "encoder.get_token_probs"
    return {
        "encoder.pos_embed_probs": (1, int(np.prod(grid_of(meta))), width),
        **block_shapes(name, width, depth, ""),
        **pair(f"{name}.{depth}", 1, width),
    }


def table_shapes(meta: Meta, name: str, width: int, has_class: bool) -> Shapes:
    """Position tables that are learned, or stored though they are not (MAE's)."""
    time, *plane = grid_of(meta)
    if not meta.get("separable_pos_embed", False):
        return {name: (1, time * plane[0] * plane[1] + has_class, width)}
    shapes: Shapes = {
        f"{name}_spatial": (1, plane[0] * plane[1], width),
        f"{name}_temporal": (1, time, width),
    }
    return shapes | ({f"{name}_class": (1, 1, width)} if has_class else {})


def mae_shapes(meta: Meta) -> Shapes:
    """MAE's autoencoder, without ``num_frames``, or MAE-ST's."""
    is_image = "num_frames" not in meta
    style, has_class = ("qkv", True) if is_image else ("separate", meta["cls_token"])
    width, inner, patch = meta["encoder"]["dim"], meta["decoder"]["dim"], video_patch(meta)
    shapes: Shapes = {
        **pair("patch_embed.proj", width, *(patch[:1] + patch[2:] if is_image else patch)),
        **table_shapes(meta, "pos_embed", width, has_class),
        **stack(meta, "encoder", "blocks", style),
        **pair("norm", width),
        **pair("decoder_embed", inner, width),
        "mask_token": (1, 1, inner),
        **table_shapes(meta, "decoder_pos_embed", inner, has_class),
        **stack(meta, "decoder", "decoder_blocks", style),
        **pair("decoder_norm", inner),
        **pair("decoder_pred", int(np.prod(video_patch(meta, predicted=True))), inner),
    }
    if has_class:
        shapes["cls_token"] = (1, 1, width)
    if has_class and not is_image:
        shapes["decoder_cls_token"] = (1, 1, inner)
    return shapes


def encoder_only(shapes: Shapes, prefix: str = "") -> Shapes:
    """What a classifier has of an autoencoder: patches, class token, positions and blocks."""
    kept = tuple(prefix + name for name in ("patch_embed", "cls_token", "pos_embed", "blocks"))
    return {name[len(prefix) :]: s for name, s in shapes.items() if name.startswith(kept)}


def classifier_shapes(meta: Meta, shapes: Shapes) -> Shapes:
    """A classifier around the encoder of an autoencoder."""
    width, is_videomae = meta["encoder"]["dim"], "encoder_to_decoder.weight" in shapes
    return {
        **encoder_only(shapes, "encoder." if is_videomae else ""),
        **pair("fc_norm" if is_videomae else "norm", width),
        **pair("head", meta["num_classes"], width),
    }


def fill(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Random weights: no bias is zero, no norm is plain, no layer explodes."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = rng.normal(size=shape)
        if name.endswith(("weight", "weight_orig")) and len(shape) > 1:
            noise /= np.prod(shape[1:]) ** 0.5
        else:
            noise *= 0.1
            noise += "norm" in name and name.endswith("weight")
            noise += 0.5 * ("gamma" in name)
        weights[name] = noise.astype(np.float32)
    return weights


def generator_shapes(heads: int) -> Shapes:
    """AutoMAE's mask generator."""
    return {**pair("scorer_pred.main.0", 6, heads, 3, 3), **pair("scorer_pred.main.2", 1, 6, 3, 3)}


def discriminator_shapes() -> Shapes:
    """AutoMAE's discriminator."""
    shapes = ((16, 1, 4, 4), (32, 16, 4, 4), (1, 32, 3, 3))
    return {f"conv{layer}.0.weight_orig": shape for layer, shape in enumerate(shapes, start=1)}


def singular_vectors(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first ones, to which the power iteration of a spectral norm converges."""
    vectors = {}
    for name, weight in weights.items():
        left, _, right = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
        vectors[name.replace("_orig", "_u")] = left[:, 0]
        vectors[name.replace("_orig", "_v")] = right[0]
    return vectors
