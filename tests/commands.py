"""The command line in a process of its own."""

import subprocess
import sys


def herald(*words: str) -> "subprocess.CompletedProcess[str]":
    """`herald WORDS`, run to its end."""
    return subprocess.run([sys.executable, "-m", "herald", *words], capture_output=True, text=True, check=False)
