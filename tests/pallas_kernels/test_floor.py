"""The kernels stand on JAX alone: they import nothing of this project, and a GPU's languages only where they run."""

import subprocess
import sys


def test_kernels_import_no_other_package_and_no_language_of_gpus_before_it_is_needed():
    script = (
        "import sys, pallas_kernels\n"
        "early = [name for name in ('jax.experimental.pallas.mosaic_gpu', 'triton') if name in sys.modules]\n"
        "import pallas_kernels.mosaic_gpu.tile_problems\n"
        "names = ('jaxrun', 'jaxlm', 'altojax', 'twistjax', 'pydantic', 'triton')\n"
        "print(early + [name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
