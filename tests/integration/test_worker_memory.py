"""What is held against a worker's limit of memory, on real processes, and when the looking is done."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cronplane_operator.worker_memory import MemoryWatch, own_memory

MIB = 2**20
# An interpreter by itself takes some ten.
LIMIT = 64 * MIB
HOLDS = {
    "nothing": "",
    "address space that is only reserved": "a = mmap.mmap(-1, 2**34, flags=mmap.MAP_PRIVATE | MAP_NORESERVE)",
    "pages of a file": """
f = tempfile.TemporaryFile(dir=".")
f.write(bytes(96 * MIB)); f.flush(); a = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(a[::4096])""",
    "shared by three forks": "a = b'x' * 32 * MIB\nfork(lambda: None, 3)",
    "private memory": "a = b'x' * 96 * MIB",
    "shared memory": "a = mmap.mmap(-1, 96 * MIB)\na.write(b'x' * 96 * MIB)",
    "memory of three forks together": "fork(lambda: left.append(b'x' * 32 * MIB), 3)",
    "memory of a fork in another session": "fork(lambda: (os.setsid(), left.append(b'x' * 96 * MIB)), 1)",
}
PROGRAM = """
import mmap, os, sys, tempfile
MIB, MAP_NORESERVE, left = 2**20, 0x4000, []
def fork(action, times):
    reading, writing = os.pipe()
    for _ in range(times):
        if os.fork() == 0:
            action()
            os.write(writing, b"!")
            sys.stdin.read()
            os._exit(0)
    for _ in range(times):
        os.read(reading, 1)
{holds}
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Start programs that hold something; gives the pid when they do."""
    with ExitStack() as stack:

        def start_program(holds: str) -> int:
            program = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(holds=HOLDS[holds])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(program)
            assert program.stdout is not None
            assert program.stdout.readline() == b"\n"
            return program.pid

        yield start_program


@pytest.mark.parametrize(
    "holds",
    ["nothing", "address space that is only reserved", "pages of a file", "shared by three forks"],
)
def test_it_is_not_held_against_a_worker(start: Callable[[str], int], holds: str) -> None:
    assert MemoryWatch(limit=LIMIT, own=0).look([start(holds)]) == []


@pytest.mark.parametrize("holds", ["private memory", "shared memory", "memory of three forks together"])
def test_it_is_held_against_a_worker(start: Callable[[str], int], holds: str) -> None:
    pid = start(holds)
    assert MemoryWatch(limit=LIMIT, own=0).look([pid]) == [pid]


def test_a_fork_in_another_session_is_its_parents(start: Callable[[str], int]) -> None:
    pid = start("memory of a fork in another session")
    assert MemoryWatch(limit=LIMIT, own=0).look([pid]) == [pid]


def test_what_was_there_before_the_fork_does_not_count(start: Callable[[str], int]) -> None:
    assert MemoryWatch(limit=LIMIT, own=64 * MIB).look([start("private memory")]) == []


def test_a_process_that_is_gone_takes_nothing() -> None:
    program = subprocess.Popen(["/bin/true"])
    program.wait()
    assert MemoryWatch(limit=0, own=0).look([program.pid]) == []


def test_own_memory_is_that_of_this_process() -> None:
    before = own_memory()
    hoard = b"x" * 64 * MIB
    assert own_memory() - before > len(hoard) // 2


def test_nobody_looks_until_told_to() -> None:
    watch = MemoryWatch(limit=LIMIT, own=0)
    assert watch.pause(100.0) is None
    watch.keep_on(until=110.0)
    assert watch.pause(100.0) == 0.0
    assert watch.pause(110.0) is None


def test_a_look_that_took_long_is_followed_by_a_long_rest() -> None:
    watch = MemoryWatch(limit=LIMIT, own=0)
    watch.keep_on(until=110.0)
    watch.rest(since=100.0, now=100.0)
    assert watch.pause(100.0) == pytest.approx(0.025)
    watch.rest(since=101.0, now=101.5)
    assert watch.pause(101.5) == pytest.approx(5.0)
