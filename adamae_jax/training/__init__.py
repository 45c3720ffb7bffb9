"""State, step, optimiser, mesh, checkpoints and the loop."""
