"""What tests of the documentation share."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for `blocks`, whichever way pytest imports the tests
sys.path.insert(0, str(HERE.parents[1] / "scripts"))
