"""Reports as single pages of HTML: of an evaluation, and of what a latent space does."""

from calotype.evaluate.report.page import write_evaluation
from calotype.evaluate.report.pictures import Crop
from calotype.evaluate.report.probe import write_probe

__all__ = ["Crop", "write_evaluation", "write_probe"]
