"""What the tests of analyses share."""

from functools import cache
from importlib import import_module

import pytest


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """Intervals of 499 resamples: the conclusions do not hang on their third digit."""
    from ttreg_interp.metrics import _resampling, intervals

    with pytest.MonkeyPatch.context() as patch:
        for module in (_resampling, intervals):
            patch.setattr(module, "RESAMPLES", 499)
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Findings of a script on a small planted ViT, which all of them share."""
    folder = tmp_path_factory.mktemp("analyses")

    @cache
    def analyse(name, **options):
        module = import_module(f"analyses.paper.{name}")
        config = module.Config(out=folder / name, image_size=112, **options)
        return module.analyse(config)

    return analyse
