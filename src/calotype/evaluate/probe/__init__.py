"""What a VAE's latent space does, measured: `probe(vae, pictures)`."""

from calotype.evaluate.probe.finding import Finding, Number
from calotype.evaluate.probe.run import Probe, probe

__all__ = ["Finding", "Number", "Probe", "probe"]
