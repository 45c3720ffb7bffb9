"""AdaMAE and VideoMAE in PyTorch: what `adamae_jax.benchmark.compare` times this project against.

Written for that alone. Its parameters have the names of the authors' code, so that their weights
load, and it computes what theirs computes (tests/benchmark/test_torch_models.py). Needs PyTorch.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamae_jax.models.tubelets import ClipGeometry

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLING_LOSS_WEIGHT = 1e-4


@dataclasses.dataclass(frozen=True)
class Stack:
    """The size of a stack of blocks: width, depth, heads."""

    width: int
    depth: int
    num_heads: int


class Attention(nn.Module):
    """Self-attention; ``fused`` uses PyTorch's own, which keeps no scores."""

    def __init__(self, width: int, num_heads: int, *, bias: bool, dropout: float, fused: bool):
        """As the authors': one matrix for all three, a bias on queries and values or on none."""
        super().__init__()
        self.num_heads, self.fused = num_heads, fused
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        batch, length, width = x.shape
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = functional.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            mixed = scores.softmax(-1) @ value
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(batch, length, width)))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, dropout: float):
        """Four times as wide inside."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        return self.dropout(self.fc2(functional.gelu(self.fc1(x))))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        fused: bool,
    ):
        """See `Attention`."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attn = Attention(width, num_heads, bias=bias, dropout=dropout, fused=fused)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B, N, d]``."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Pixels to tokens."""

    def __init__(self, geometry: ClipGeometry, width: int):
        """A convolution whose kernel is its stride."""
        super().__init__()
        kernel = (geometry.tubelet_size, geometry.patch_size, geometry.patch_size)
        self.proj = nn.Conv3d(3, width, kernel, kernel)

    def forward(self, video: Tensor) -> Tensor:
        """``[B, C, T, H, W] -> [B, N, d]``."""
        return self.proj(video).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Sees the visible tokens only; AdaMAE's also holds the sampling network."""

    def __init__(self, geometry: ClipGeometry, size: Stack, *, adaptive: bool, fused: bool):
        """``adaptive``: with AdaMAE's sampling network."""
        super().__init__()
        width, tokens = size.width, geometry.num_tokens
        self.patch_embed = PatchEmbed(geometry, width)
        self.blocks = nn.ModuleList(
            Block(width, size.num_heads, fused=fused) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.register_buffer("positions", sincos(tokens, width), persistent=False)
        if adaptive:
            self.pos_embed_probs = nn.Parameter(torch.zeros(1, tokens, width))
            sampler = Block(width, 8, bias=False, dropout=0.1, epsilon=1e-5, fused=fused)
            self.get_token_probs = nn.Sequential(sampler, nn.Linear(width, 1))

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """``[B, N, d], [B, v] -> [B, v, d]``."""
        x = pick(tokens + self.positions, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Predicts the pixels of masked tokens."""

    def __init__(self, size: Stack, values: int, *, fused: bool):
        """``values``: of a tubelet."""
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(size.width, size.num_heads, fused=fused) for _ in range(size.depth)
        )
        self.norm, self.head = nn.LayerNorm(size.width, 1e-6), nn.Linear(size.width, values)

    def forward(self, x: Tensor, masked: int) -> Tensor:
        """``[B, N, d] -> [B, m, p]``, of the last ``masked`` tokens."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -masked:]))


class Pretraining(nn.Module):
    """The whole forward pass, from uint8 clips to the losses."""

    def __init__(
        self,
        geometry: ClipGeometry,
        encoder: Stack,
        decoder: Stack,
        num_visible: int,
        *,
        adaptive: bool,
        fused: bool,
    ):
        """A model of random weights.

        Args:
          geometry: how clips are cut.
          encoder: its size.
          decoder: its size.
          num_visible: tokens that the encoder sees.
          adaptive: AdaMAE's sampling network chooses them; else they are a tube (VideoMAE).
          fused: attention is PyTorch's own function instead of the authors' products.
        """
        super().__init__()
        self.geometry, self.num_visible, self.adaptive = geometry, num_visible, adaptive
        self.encoder = Encoder(geometry, encoder, adaptive=adaptive, fused=fused)
        self.decoder = Decoder(decoder, geometry.tubelet_values, fused=fused)
        self.encoder_to_decoder = nn.Linear(encoder.width, decoder.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        table = sincos(geometry.num_tokens, decoder.width)
        self.register_buffer("positions", table, persistent=False)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = torch.tensor(values).view(3, 1, 1, 1)
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> dict[str, Tensor]:
        """Losses and what they are made of.

        Args:
          clips: ``[B, T, H, W, 3]``, uint8.
          visible: the tokens that the encoder sees ``[B, v]``, in order; None draws them.
        """
        pixels = clips.permute(0, 4, 1, 2, 3).float() / 255
        tokens = self.encoder.patch_embed((pixels - self.pixel_mean) / self.pixel_std)
        figures = {}
        probs = None
        if self.adaptive:
            logits = self.encoder.get_token_probs(tokens + self.encoder.pos_embed_probs)
            probs = figures["probs"] = logits[..., 0].float().softmax(-1)
        if visible is None:
            visible = self.tube(tokens) if probs is None else self.draw(probs)
        masked = others(visible, self.geometry.num_tokens)

        latents = self.encoder_to_decoder(self.encoder(tokens, visible))
        places = self.positions.expand(len(latents), -1, -1)
        sequence = (latents + pick(places, visible), self.mask_token + pick(places, masked))
        predictions = self.decoder(torch.cat(sequence, 1), masked.shape[1]).float()

        with torch.no_grad():
            targets = pick(normalized_tubelets(pixels, self.geometry), masked)
        errors = (predictions - targets).square().mean(-1)
        figures |= {"pred_masked": predictions, "target_masked": targets, "token_error": errors}
        figures["loss_reconstruction"] = figures["loss_total"] = errors.mean()
        if probs is not None:
            tiny = torch.finfo(torch.float32).eps
            log_probs = probs.clamp(tiny, 1 - tiny).log().gather(1, masked)
            sampling = -SAMPLING_LOSS_WEIGHT * (log_probs * errors.detach()).mean()
            figures["loss_sampling_weighted"] = sampling
            figures["loss_total"] = errors.mean() + sampling
        return figures

    def draw(self, probs: Tensor) -> Tensor:
        """Visible tokens from the sampling network's distribution, none twice, in order."""
        drawn = torch.multinomial(probs.detach(), self.num_visible, replacement=False)
        return drawn.sort(1).values

    def tube(self, tokens: Tensor) -> Tensor:
        """The same places in every time step."""
        steps, rows, columns = self.geometry.grid
        places = rows * columns
        noise = torch.rand(len(tokens), places, device=tokens.device)
        kept = noise.argsort(1)[:, : self.num_visible // steps].sort(1).values
        starts = places * torch.arange(steps, device=tokens.device)
        return (starts[:, None] + kept[:, None]).flatten(1)


def sincos(length: int, width: int) -> Tensor:
    """Fixed positions ``[1, length, width]``: pairs of channels share a frequency."""
    channels = torch.arange(width, dtype=torch.float64)
    frequency = torch.exp(-math.log(10000.0) * 2 * (channels // 2) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    return table[None].float()


def pick(x: Tensor, places: Tensor) -> Tensor:
    """``[B, N, d], [B, k] -> [B, k, d]``."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def others(visible: Tensor, length: int) -> Tensor:
    """The tokens that are not visible, in order."""
    unseen = torch.ones(len(visible), length, dtype=torch.bool, device=visible.device)
    unseen.scatter_(1, visible, False)
    # As many in each row: a stable sort puts them behind the others, in order.
    return unseen.sort(dim=1, stable=True).indices[:, visible.shape[1] :]


def normalized_tubelets(pixels: Tensor, geometry: ClipGeometry) -> Tensor:
    """Tubelets ``[B, N, p]`` of ``[B, C, T, H, W]``, normalised for each colour channel."""
    steps, rows, columns = geometry.grid
    t, p = geometry.tubelet_size, geometry.patch_size
    x = pixels.view(len(pixels), 3, steps, t, rows, p, columns, p)
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(pixels), steps * rows * columns, t * p * p, 3)
    x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True).sqrt() + 1e-6)
    return x.flatten(2)
