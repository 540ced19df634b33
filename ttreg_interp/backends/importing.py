"""The import of nnsight, with its side effect taken back."""

import sys
from types import ModuleType


def import_nnsight() -> ModuleType:
    """nnsight, without the `.save()` that its import mounts on every object of the process.

    torch's ONNX exporter calls `ir.save` of a lazy module, and would find that one instead. Who has
    imported nnsight before keeps it mounted, since their code may use it.

    Raises:
        ImportError: nnsight is not installed.
    """
    others = "nnsight" in sys.modules
    import nnsight
    from nnsight import _c

    if not others and _c.unmount is not None:
        _c.unmount("save")
    return nnsight
