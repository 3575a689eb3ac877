"""Runs scripts of this folder one after another, so that all of them import PyTorch once.

Reads lines of JSON, ``[script, argument, ...]``, and answers each with one: what it printed, and the traceback of
what it raised or null.
"""

import contextlib
import io
import json
import runpy
import sys
import traceback
import warnings
from pathlib import Path

answers = sys.stdout
for line in sys.stdin:
    sys.argv = json.loads(line)
    printed, raised = io.StringIO(), None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        try:
            runpy.run_path(str(Path(__file__).with_name(sys.argv[0])), run_name="__main__")
        except Exception:
            raised = traceback.format_exc()
    print(json.dumps([printed.getvalue(), raised]), file=answers, flush=True)
