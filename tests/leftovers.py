"""What a test may leave behind."""

import os

from herald.domains import domains


def own_domains() -> list[str]:
    """Those that this process has named; somebody else may use Herald on this machine meanwhile."""
    return [domain for domain in domains() if str(os.getpid()) in domain.split("-")]
