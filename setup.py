"""Builds the engine's kernels; everything else about the package stands in pyproject.toml.

The kernels are an ordinary shared library that is loaded by name: they know neither Python nor
torch. Without a C++ compiler the package installs all the same and trains with masks.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/equipoise/engine/kernels")
COMMON = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fno-math-errno"]
COMMON += ["-fno-trapping-math", "-ffp-contract=fast", "-w"]
X86 = {
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": ["-mavx512f", "-mavx512dq", "-mavx2", "-mfma"],
}


class Kernels(build_ext):
    """Compiles each instruction set with flags of its own, which `Extension` has no way to say."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links the library where the package expects it."""
        names = ("portable.cpp", "lists.cpp", "updates.cpp", "library.cpp", "parallel.cpp")
        files = {name: [] for name in names}
        if platform.machine().lower() in ("x86_64", "amd64"):
            files |= X86
        objects = []
        for name, flags in files.items():
            objects += self.compiler.compile(
                [str(SOURCES / name)],
                output_dir=self.build_temp,
                include_dirs=[str(SOURCES)],
                extra_postargs=COMMON + flags,
            )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-pthread"],
            target_lang="c++",
        )

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Nothing that Python would import."""
        del ext
        return []


setup(
    # Optional: a failure to compile is reported by pip and leaves the rest installed.
    ext_modules=[
        Extension("equipoise.engine._kernels", [str(SOURCES / "library.cpp")], optional=True)
    ],
    cmdclass={"build_ext": Kernels},
)
