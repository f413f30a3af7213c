"""What can go wrong, by what the caller can do about it.

PipelineError
  ConfigError       wrong settings: stop, tell the operator
  SourceError       the video cannot be read: stop, or reconnect where it is live
  BundleMismatch    packet and model do not belong together: stop this camera
  BitstreamError    bytes are not a packet: drop, count
  MissingKey        a region refers to a key that is not here: ask for it
  TransportError    the peer is gone: reconnect
"""


class PipelineError(Exception):
    """Root of everything this project raises on purpose; its text is one sentence for the operator."""


class ConfigError(PipelineError):
    """Settings or files named by them are wrong."""


class SourceError(PipelineError):
    """A video source cannot be opened or read."""


class BundleMismatch(PipelineError):
    """A packet names another bundle than the one that is loaded."""


class BitstreamError(PipelineError):
    """Bytes from outside are not what they should be."""


class MissingKey(PipelineError):
    """A WARP region refers to a key that is not in the buffer."""


class TransportError(PipelineError):
    """A server or peer is not reachable, or went away."""
