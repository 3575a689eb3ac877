"""Runs that never were are those of tests/altojax."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "altojax"))
