"""Requests to a confined process in tests."""

import os
from pathlib import Path

import jaxrun


def answer(request):
    """Does what it is told."""
    match request["do"]:
        case "echo":
            return {"said": request["what"], "process": os.getpid()}
        case "where":
            return {"said": jaxrun.__path__[0]}
        case "loop":
            while True:
                pass
        case "compute":
            return {"said": len(str(7 ** (10**9)))}
        case "fill":
            return {"said": len([0] * 2**30)}
        case "shout":
            return {"said": "a" * (2**26 + 1)}
        case "die":
            os._exit(3)
        case "fail":
            raise ZeroDivisionError("no")
        case "write":
            Path(request["path"]).write_bytes(b"x")
            return {}
