"""Pixels to tokens to latents to pixels: Flax Linen definitions that know no optimiser, no config."""
