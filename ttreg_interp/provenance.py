"""What every saved result says about how it was made."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "ttreg-interp",
    "torch",
    "transformer-lens",
    "transformers",
    "timm",
    "open-clip-torch",
    "nnsight",
)


def versions() -> dict[str, Any]:
    """Versions of Python and of the installed packages that bear on a result."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
