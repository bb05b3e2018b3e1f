"""What can go wrong, each with the exit code a script or a scheduler acts on.

0 done · 1 a fault of ours · 2 usage or config · 65 data · 69 the cluster did not form (requeue elsewhere)
· 70 no progress (stop) · 75 saved after a signal, run me again.
"""


class PipelineError(Exception):
    """One clear line for the user: what was found, what was expected, what to change."""

    code = 1


class ConfigError(PipelineError):
    """A config, an override or a command line that cannot be run. Holds one line per mistake."""

    code = 2


class DataError(PipelineError):
    """Images or shards that are missing, altered or unreadable past the limits."""

    code = 65


class ClusterError(PipelineError):
    """The processes asked for did not come together: worth trying on other nodes."""

    code = 69


class NoProgressError(PipelineError):
    """Running again would end in the same place."""

    code = 70


class Stopped(PipelineError):
    """Asked to stop, and saved: the same command goes on from here."""

    code = 75
