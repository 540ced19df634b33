"""What the tests of analyses share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """Intervals of 499 resamples: the conclusions do not hang on their third digit."""
    from ttreg_interp.metrics import _resampling, intervals

    with pytest.MonkeyPatch.context() as patch:
        for module in (_resampling, intervals):
            patch.setattr(module, "RESAMPLES", 499)
        yield
