"""``python -m twistjax`` is ``twistjax``."""

import sys

from twistjax.cli import main

sys.exit(main())
