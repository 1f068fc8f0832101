"""The errors Herald raises. Every message names the setting, its value, what is allowed, and the next step.

HeraldError
├── ConfigError    a setting that a person wrote is wrong: priority, SLO, config file, environment
├── TableError     the shared table cannot be used: wrong magic, version or size, no permission, full
├── BuildError     a native library cannot be built here: no compiler, a compile error
├── GraphError     a profile or a graph file holds no data flow that can be shown: no iteration, a cycle, cut short
├── AttachError    this process cannot be scheduled: both priorities on CUDA, several ranks
├── ProfileError   ops cannot be profiled: the step function does nothing, raises or never ends
└── DaemonError    the daemon cannot run: another one owns the domain, MPS does not start
"""


class HeraldError(Exception):
    """Root of every error that Herald raises on purpose."""


class ConfigError(HeraldError):
    """A setting is wrong; nothing was changed."""


class TableError(HeraldError):
    """The shared table of a domain cannot be opened or has no room."""


class BuildError(HeraldError):
    """A native library cannot be built on this machine."""


class GraphError(HeraldError):
    """There is no data flow to build, or a file's is impossible."""


class AttachError(HeraldError):
    """This process or model cannot be attached."""


class ProfileError(HeraldError):
    """A workload cannot be profiled; the recorder is off and all hooks are gone."""


class DaemonError(HeraldError):
    """The daemon cannot start or own its domain."""
