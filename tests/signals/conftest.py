"""What tests of signals share."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cli")]  # for `killkit` and `drawingkit`, whichever way pytest imports
