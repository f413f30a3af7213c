"""The inference libraries, imported without their telemetry: what runs here is the operator's business alone.

The wheels of onnxruntime from 1.29 on report each session to their maker, OpenVINO's report each import; both keep an
identifier in the user's home. On a network without name servers a report also holds up the end of the process, for
longer than the 10 s that a container has to stop.
"""

import os
import sys
from typing import Any

_REPORTER = "openvino_telemetry"


def import_onnxruntime() -> Any:
    """Return the module, which sends no reports, whatever the environment says; ImportError where it is missing."""
    # Read once, when the library is loaded: its own function for this comes too late for the first report.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # for Windows, where the variable is not read
    return onnxruntime


def import_openvino() -> Any:
    """Return the module, which sends no reports, whatever the environment says; ImportError where it is missing."""
    reporter = sys.modules.get(_REPORTER)
    # Without that package, which None says, it uses a stub of its own instead.
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[_REPORTER]
        if reporter is not None:
            sys.modules[_REPORTER] = reporter
    return openvino
