"""Memory that is freed and wanted again costs no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdpipe.engine.allocator import OWN_SETTINGS

CODE = """
import resource, sys
from kdpipe.engine.allocator import keep_freed_memory
import numpy as np

kept = sys.argv[1] == "keep" and keep_freed_memory()

def work():
    blocks = [np.ones(2**20) for _ in range(8)]  # 8 MiB each

work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode, **environment):
    """Whether freed memory was kept, and the page faults of work that wants the same blocks again."""
    clean = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, count = map(int, done.stdout.split())
    return bool(kept), count


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    kept, few = faults("keep")
    _, many = faults("leave")
    if not kept:
        pytest.skip("this system's C library is not glibc")
    assert few < many / 10


def test_settings_of_ones_own_win():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
