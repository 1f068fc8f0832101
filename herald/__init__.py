"""Herald lets an inference service with a latency SLO and best-effort training share one GPU.

    import herald
    herald.attach(model, priority="low")                   # in the training script: that is all
    herald.attach(model, priority="high", slo="50ms")      # in the service: each outermost forward is a request
    herald.profile(step).save("vgg16.profile.json")        # offline: what every op of a job needs

Importing this package imports no torch; `attach` does.
"""

from herald.errors import AttachError, BuildError, ConfigError, DaemonError, HeraldError, ProfileError, TableError
from herald.hooks.attach import attach
from herald.hooks.job import Job
from herald.hooks.profiler import profile
from herald.hooks.requests import Request
from herald.job_view import Histogram, JobView
from herald.profiles import Profile

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "BuildError",
    "ConfigError",
    "DaemonError",
    "HeraldError",
    "Histogram",
    "Job",
    "JobView",
    "Profile",
    "ProfileError",
    "Request",
    "TableError",
    "attach",
    "profile",
]
