"""What tests of the documentation share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `blocks`, whichever way pytest imports the tests
