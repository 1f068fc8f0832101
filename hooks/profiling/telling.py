"""What the profiling process says: to `herald.profile_process` by a pipe, to people on stderr."""

import os
import sys
import traceback
from typing import NoReturn

from herald.errors import HeraldError, ProfileError
from herald.profile_process import Order
from herald.profiles import Profile


def tell(order: Order, line: str) -> None:
    """Tell how far it is."""
    try:
        os.write(order.pipe, f"{line}\n".encode())
    except OSError:  # nobody listens any more
        return


def write(order: Order, profile: Profile) -> None:
    """Write the profile, and tell. Raises ConfigError: it cannot be written."""
    profile.save(order.output)
    tell(order, "written")


def fail(order: Order, error: HeraldError) -> NoReturn:
    """Say why there is no profile, with what the workload raised, and end."""
    if error.__cause__ is not None and isinstance(error, ProfileError):
        traceback.print_exception(error.__cause__)
    print(f"herald: error: {error}", file=sys.stderr, flush=True)
    tell(order, "failed")
    raise SystemExit(2)
