"""Reports as single pages of HTML, of an evaluation and of what a latent space does, and as sheets."""

from calotype.evaluate.report.page import write_evaluation
from calotype.evaluate.report.pictures import Crop
from calotype.evaluate.report.probe import write_probe
from calotype.evaluate.report.sheet import write_sheet

__all__ = ["Crop", "write_evaluation", "write_probe", "write_sheet"]
