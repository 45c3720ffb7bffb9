"""PyTorch's side of `adamae_jax.benchmark.compare`."""

import torch
from ml_collections import ConfigDict

from adamae_jax import experiment
from adamae_jax.benchmark.compare import Contender
from adamae_jax.benchmark.step import host_memory
from adamae_jax.benchmark.torch_models import Pretraining, Stack


def contender(config: ConfigDict, name: str) -> Contender:
    """Makes the train step of a form: forward, backward, and AdamW on two groups."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # What JAX does by default where there are tensor cores.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    task = experiment.pretraining(config)
    geometry = task.model.geometry
    fused = name != "published"
    encoder, decoder = config.model.encoder, config.model.decoder
    model: torch.nn.Module = Pretraining(
        geometry,
        Stack(encoder.width, encoder.depth, encoder.num_heads),
        Stack(decoder.width, decoder.depth, decoder.num_heads),
        task.strategy.num_visible(geometry.grid),
        adaptive=config.masking.name == "adaptive",
        fused=fused,
    ).to(device)
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        groups,
        lr=1e-4,
        betas=(options.b1, options.b2),
        weight_decay=options.weight_decay,
        fused=True if fused else None,
    )
    if name == "compiled":
        model = torch.compile(model)
    shape = (config.batch_size, *geometry.clip_shape)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    bfloat16 = config.model.dtype == "bfloat16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = model(clips)["loss_total"]
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    def peak_bytes() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else host_memory()

    return Contender(step, peak_bytes, f"torch {torch.__version__}")
