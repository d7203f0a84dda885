"""Freed memory stays with the process: fewer page faults, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from reidguard.cli.allocation import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "yes" else None)
np.ones(2**24)  # 128 MiB, once for the heap to grow
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep, **variables):
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC", "LD_P"))}
    call = [sys.executable, "-c", PROGRAM, keep]
    run = subprocess.run(
        call, capture_output=True, text=True, env={**plain, **variables}, check=True
    )
    kept, count = run.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_mapped_once():
    kept, with_it = faults("yes")
    assert kept == "True"
    _, without = faults("no")
    assert with_it < without / 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_users_own_settings_stay():
    assert faults("yes", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
