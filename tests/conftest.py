"""Shared fixtures. The package is imported inside fixtures, so that its shapes are checked."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_configure() -> None:
    torch.set_num_threads(1)  # xdist runs one worker a core


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real weights and images, which are not part of the project."""
    folder = SHARED / "assets"
    if not folder.is_dir():
        pytest.skip("the real weights and images are not at hand (../shared/assets)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Tensors of the reference implementation, which are not part of the project."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the reference's tensors are not at hand (../shared/golden)")
    return folder
