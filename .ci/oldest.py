"""Print pip constraints that fix dependencies at their lower bounds in pyproject.toml.

Usage::

    python .ci/oldest.py > oldest.txt                    # all that have a lower bound
    python .ci/oldest.py torch torchvision > oldest.txt  # these alone
    PIP_CONSTRAINT=oldest.txt make test
"""

import re
import sys
from pathlib import Path

BOUND = re.compile(r'^  "([\w.-]+)>=([\w.]+)', re.M)  # a line of a list of requirements


def bounds(pyproject: str) -> dict[str, str]:
    """Return the lower bound of each dependency; those of the build system are not among them."""
    return dict(BOUND.findall(pyproject))


if __name__ == "__main__":
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    for name, version in bounds(project).items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            print(f"{name}=={version}")
