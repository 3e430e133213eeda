"""Runs every benchmark; entries for them are found beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "distributions"))

from bench import burst
from cronplane_entries.registry import load_entries

load_entries()
burst.report()
