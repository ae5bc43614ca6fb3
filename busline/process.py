"""What the operating system tells of this process."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def resident_memory() -> int:
    """Bytes of memory that this process occupies; where the system doesn't tell, the most that it ever did."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
