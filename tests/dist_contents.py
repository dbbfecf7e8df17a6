"""What an sdist and a wheel may hold, and nothing else: `python tests/dist_contents.py FILE...`."""

from __future__ import annotations

import fnmatch
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources(folder: str, *patterns: str) -> set[str]:
    """The files below a folder of the tree that match one of the patterns."""
    paths = (path for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {str(path.relative_to(ROOT)) for path in paths}


PACKAGE = sources("deepclust", "*.py", "*.pyi", "py.typed")
SDIST = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
SDIST |= {"PKG-INFO", "setup.cfg"} | sources("csrc", "*.cpp", "*.h")  # the two are generated
ABOUT = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def check(archive: Path) -> None:
    """Print what an archive holds; end the process where that is not what it should be."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = {name for name in wheel.namelist() if not name.endswith("/")}
        about = "-".join(archive.name.split("-")[:2]) + ".dist-info"
        expected = PACKAGE | {f"{about}/{name}" for name in ABOUT}
        extensions = fnmatch.filter(names, "deepclust/_C.*.so")
        if len(extensions) != 1:
            sys.exit(f"{archive.name}: holds {len(extensions)} extensions, not one")
        names.remove(extensions[0])
    else:
        with tarfile.open(archive) as sdist:
            top = archive.name.removesuffix(".tar.gz") + "/"
            names = {member.name.removeprefix(top) for member in sdist if member.isfile()}
        names = {name for name in names if not name.startswith("deepclust.egg-info/")}
        expected = PACKAGE | SDIST
    for what, wrong in (("lacks", expected - names), ("holds", names - expected)):
        if wrong:
            sys.exit(f"{archive.name}: {what} {', '.join(sorted(wrong))}")
    print(f"{archive.name}: {len(names)} files, {archive.stat().st_size / 1024:.0f} KB")


for argument in sys.argv[1:]:
    check(Path(argument))
