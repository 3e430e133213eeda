"""`kubectl` as the administrator of the cluster that KUBECONFIG names."""

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

# Seconds; generous, since it only keeps a test from waiting forever.
HANG_GUARD = 60


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Calls `kubectl`, in a namespace if one is given; what it waits for may take `patience` seconds."""

    namespace: str | None = None
    patience: int = HANG_GUARD

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        """Call it with these arguments; gives what it says."""
        done = subprocess.run(
            self.command(*arguments),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * self.patience,
        )
        assert done.returncode == 0, f"kubectl {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def ask(self, *arguments: str) -> str:
        """Ask what is answered by the exit code, too."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        assert not done.stderr, f"kubectl {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        """Give the command of a call."""
        place = [] if self.namespace is None else ["--namespace", self.namespace]
        return [shutil.which("kubectl") or "kubectl", *place, *arguments]

    def read(self, *arguments: str) -> Any:
        """Get objects as they are stored."""
        return json.loads(self("get", *arguments, "--output=json"))

    def wait(self, condition: str, *arguments: str, seconds: int | None = None) -> None:
        """Wait until something is so, by the server's word."""
        self("wait", f"--for={condition}", f"--timeout={seconds or self.patience}s", *arguments)
