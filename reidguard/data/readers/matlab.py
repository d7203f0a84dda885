"""Matrices of MATLAB files (.mat), which some datasets keep their splits in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reidguard.errors import DataError, InputError

__all__ = ["load_matrix"]


def load_matrix(path: Path, name: str) -> Any:
    """Return a variable of a MATLAB file, version 4 to 7.2, as a numpy array.

    Raises:
        DataError: If the file is missing, is no such file, or has no such variable.
        InputError: If SciPy is not installed.
    """
    if not path.is_file():
        raise DataError(f"the file {path} is missing; expected: the MATLAB matrix {name}")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(
            f"{path} is a MATLAB file, which SciPy reads: pip install 'reidguard[mat]'"
        ) from error
    try:
        content = loadmat(path, variable_names=[name])
    except Exception as error:  # of many kinds, for damaged files
        raise DataError(f"cannot read {path}: {error}; copy it again") from error
    if name not in content:
        raise DataError(f"{path} does not contain the matrix {name}; copy it again")
    return content[name]
