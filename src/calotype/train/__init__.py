"""Training an AutoencoderKL: data, losses, optimiser, loop and checkpoints. Needs nothing beyond the core."""
