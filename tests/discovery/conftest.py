"""Models and images that several files of tests share."""

import pytest


@pytest.fixture(scope="session")
def photographs_112():
    from ttreg_interp.testbed.photographs import photograph_tensor

    return photograph_tensor(112)


@pytest.fixture(scope="session")
def planted_truth():
    from ttreg_interp.testbed.planted import planted_vit

    return planted_vit(depth=8, image_size=112, detect={2: 3}, amplify={3: 2, 5: 1})


@pytest.fixture(scope="session")
def planted(planted_truth):
    from ttreg_interp.hooked import HookedViT

    return HookedViT.wrap(planted_truth.module)
