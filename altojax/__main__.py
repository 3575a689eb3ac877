"""``python -m altojax`` is ``altojax``."""

import sys

from altojax.cli import main

sys.exit(main())
