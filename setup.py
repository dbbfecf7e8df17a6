"""Builds deepclust._C from csrc/; without a working compiler the package installs without it."""

from __future__ import annotations

import itertools
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")

# Linux links the compiler's plain OpenMP runtime, libgomp, which torch has loaded already.
# Elsewhere the loops run on one thread. Never -march=native (one wheel serves every machine) and
# never -ffast-math (it deletes the NaN checks). GCC 12 calls its own intrinsics uninitialised.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
WARNINGS = (
    []
    if sys.platform == "win32"
    else ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]
)
OPTIMISE = ["/O2"] if sys.platform == "win32" else ["-O3", "-ffp-contract=fast", "-fno-math-errno"]
SANITIZE = os.environ.get("DEEPCLUST_SANITIZE")  # what `make sanitize` asks for: address,undefined
if SANITIZE:
    OPTIMISE = ["-O1", "-g", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined"]
    OPENMP = [*OPENMP, f"-fsanitize={SANITIZE}"]  # goes to the linker, too

# The kernels are compiled once for each instruction set; csrc/dispatch.cpp picks one at run time.
# Baseline comes first: of a function that several files share, the linker keeps the first.
X86_64 = platform.machine() in ("x86_64", "AMD64")
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [f"-mavx512{part}" for part in ("f", "dq", "bw", "vl")] + ["-mprefer-vector-width=512"]
AVX512 += [] if sys.platform == "win32" else ["-Wno-uninitialized"]
ISAS = {"baseline": [], **({"avx2": AVX2, "avx512": AVX2 + AVX512} if X86_64 else {})}
COMMON = ["bindings.cpp", "dispatch.cpp", "memory.cpp", "parallel.cpp"]
KERNELS = sorted(str(path) for path in CSRC.glob("*.cpp") if path.name not in COMMON)


class OptionalBuildExt(build_ext):
    """Builds the extension; a failure costs the extension, not the installation."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext``, or say in one line that the package will work without it."""
        try:
            ext.extra_objects = self.compile_kernels(ext)
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

    def compile_kernels(self, ext: Extension) -> list[str]:
        """The object files of the kernels, for each instruction set."""

        def compile_one(isa: str, source: str) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp) / isa),
                macros=[("DEEPCLUST_ISA", isa)],
                extra_postargs=[*ext.extra_compile_args, *ISAS[isa]],
            )

        jobs = [(isa, source) for isa in ISAS for source in KERNELS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda job: compile_one(*job), jobs)
            return list(itertools.chain.from_iterable(compiled))


setup(
    ext_modules=[
        Pybind11Extension(
            "deepclust._C",
            sources=[str(CSRC / name) for name in COMMON],
            define_macros=[("DEEPCLUST_X86_64", None)] if X86_64 else [],
            depends=sorted(str(path) for path in CSRC.glob("*.[hc]*")),
            cxx_std=17,  # pybind11 adds hidden visibility
            extra_compile_args=OPTIMISE + WARNINGS + OPENMP,
            extra_link_args=OPENMP,
            optional=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt},
)
