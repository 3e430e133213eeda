"""Turns a process into one of PostgreSQL's programs: gives up root's rights if told to, and dies with its parent.

It runs between fork and exec, by its path and without our packages, so that the server starts at once.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def launch(parent: int, user: int, group: int, command: list[str]) -> None:
    """Become `command`, under `user` and `group` (-1 keeps ours), and be interrupted when process `parent` dies.

    The wish to die is made last: the kernel forgets it at a change of user (prctl(2)).
    """
    if user != -1:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606 - replaces this very process, without a shell


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
