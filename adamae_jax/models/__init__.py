"""Pixels to tokens to latents to pixels, in Flax Linen; knows no optimiser and no config."""
