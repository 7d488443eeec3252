"""Words to a picture, and a picture changed by words, in the latents of a VAE."""
