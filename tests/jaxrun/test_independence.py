"""jaxrun knows no model: it imports neither JAX nor any package that stands beside or above it."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import jaxrun


def test_it_imports_nothing_that_knows_a_model():
    names = [module.name for module in pkgutil.walk_packages(jaxrun.__path__, "jaxrun.")]
    assert "jaxrun.store.journal" in names
    script = (
        f"import sys; sys.path.insert(0, {str(Path(jaxrun.__path__[0]).parent)!r})\n"
        f"import {', '.join(names)}\n"
        "print([name for name in ('jax', 'flax', 'transformers', 'jaxlm', 'altojax') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
