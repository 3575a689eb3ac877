"""The kernels stand on JAX alone: they import nothing of this project."""

import subprocess
import sys


def test_kernels_import_no_other_package_of_this_project():
    script = (
        "import sys, pallas_kernels, pallas_kernels.mosaic_gpu.tile_problems\n"
        "names = ('harness', 'backbone', 'altojax', 'twistjax', 'pydantic', 'triton')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
