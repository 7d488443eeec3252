"""How well pictures survive a VAE: metrics and the protocols around them."""
