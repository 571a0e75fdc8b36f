"""What pyproject.toml cannot say: the compiled kernels, built where there is a compiler."""

import platform

from setuptools import Extension, setup

FOLDER = "src/trimtab/kernels/cpu"
FITS = platform.system() == "Linux" and platform.machine() == "x86_64"

# gcc warns of its own headers.
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]

# torch's own threads are found when the kernels are loaded: nothing is linked here. Without a
# compiler the package is installed without them (`optional`), and torch computes.
kernels = Extension(
    "trimtab.kernels.cpu._kernels",
    sources=[f"{FOLDER}/{name}.cpp" for name in ("int8", "cross_entropy", "attention", "rowwise")],
    depends=[f"{FOLDER}/{name}.h" for name in ("cpu", "simd", "codes", "low_rank", "pairs")],
    extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden", *QUIET],
    language="c++",
    optional=True,
)

setup(ext_modules=[kernels] if FITS else [])
