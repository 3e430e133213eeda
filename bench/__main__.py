"""Runs the benchmarks that are named, or every one; entries for them are found beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "distributions"))

from bench import burst, fire_cost, propagation, registration, scale, start_lag
from cronplane_entries.registry import load_entries

BENCHMARKS = {
    "burst": burst.report,
    "scale": scale.report,
    "fire_cost": fire_cost.report,
    "propagation": propagation.report,
    "registration": registration.report,
    "start_lag": start_lag.report,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks in their order here."""
    if unknown := set(names) - BENCHMARKS.keys():
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    load_entries()
    for name, report in BENCHMARKS.items():
        if not names or name in names:
            report()
            print(flush=True)


main(sys.argv[1:])
