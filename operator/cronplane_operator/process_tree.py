"""Who descends from whom among the processes of this machine, read from /proc; it changes nothing.

The kernel answers for moments: a process that starts or ends meanwhile may be missing, so that whoever must not miss
one asks again (proc(5), /proc/pid/task/tid/children, which needs CONFIG_PROC_CHILDREN).
"""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Give the children of all threads of a process; none if it is gone."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found.extend(map(int, (thread / "children").read_bytes().split()))
    return found


def tree(pid: int) -> list[int]:
    """Give a process and all its descendants."""
    found = [pid]
    for each in found:
        found.extend(children(each))
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs, and is not merely waiting for its parent to take note of its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b") ")[2][:1] not in b"ZX"
