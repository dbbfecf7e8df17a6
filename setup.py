"""Builds deepclust._C from csrc/; without a working compiler the package installs without it."""

from __future__ import annotations

import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")

# Linux links the compiler's plain OpenMP runtime, libgomp, which torch has loaded already.
# Elsewhere the loops run on one thread. Never -march=native (one wheel serves every machine) and
# never -ffast-math (it deletes the NaN checks).
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
WARNINGS = [] if sys.platform == "win32" else ["-Wall", "-Wextra"]
OPTIMISE = ["/O2"] if sys.platform == "win32" else ["-O3"]


class OptionalBuildExt(build_ext):
    """Builds the extension; a failure costs the extension, not the installation."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext``, or say in one line that the package will work without it."""
        try:
            super().build_extension(ext)
        except Exception as error:
            # An older build left in the tree would be imported in place of the sources that failed.
            for stale in Path("deepclust").glob("_C*.so"):
                stale.unlink()
            reason = str(error).splitlines()[0]
            if len(reason) > 100:  # a whole command; the compiler has printed its own errors
                reason = "the compiler failed"
            print(
                f"deepclust: {ext.name} was not built ({reason}); the package works without it, "
                'with backend="eager". A C++17 compiler (g++ or clang++) builds it.',
                file=sys.stderr,
            )


setup(
    ext_modules=[
        Pybind11Extension(
            "deepclust._C",
            sources=sorted(str(path) for path in CSRC.glob("*.cpp")),
            depends=sorted(str(path) for path in CSRC.glob("*.h")),
            cxx_std=17,  # pybind11 adds hidden visibility
            extra_compile_args=OPTIMISE + WARNINGS + OPENMP,
            extra_link_args=OPENMP,
            optional=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt},
)
