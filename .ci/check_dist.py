"""Check the distributions in a folder: the wheel's size and the files that each may hold."""

import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 800_000  # of the wheel: code alone, so that no data or result slips in
TOP_OF_SDIST = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
    "reidguard",
    "reidguard.egg-info",
    "setup.cfg",
}


def check(folder: Path) -> None:
    """Exit with a message if a distribution in the folder is not as it should be."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{wheel} has {size:,} bytes; at most {MOST_BYTES:,} are allowed")
    names = zipfile.ZipFile(wheel).namelist()
    if strange := {n.partition("/")[0] for n in names if not n.startswith("reidguard")}:
        sys.exit(f"{wheel} holds {', '.join(sorted(strange))}; it must hold the package alone")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    if strange := top - TOP_OF_SDIST:
        sys.exit(f"{sdist} holds {', '.join(sorted(strange))}; leave it out in MANIFEST.in")
    print(f"{wheel.name}: {size:,} bytes, {len(names)} files; {sdist.name}: {len(top)} entries")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
