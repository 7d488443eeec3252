"""Reports as single pages of HTML, of an evaluation and of what a latent space does, and as sheets."""

from calotype.evaluate.report.page import evaluation_page, write_evaluation
from calotype.evaluate.report.pictures import Crop
from calotype.evaluate.report.probe import probe_page, write_probe
from calotype.evaluate.report.sheet import evaluation_sheet

__all__ = ["Crop", "evaluation_page", "evaluation_sheet", "probe_page", "write_evaluation", "write_probe"]
