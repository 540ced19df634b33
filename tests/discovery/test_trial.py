"""Trials: forward passes that begin late say what whole ones say; shrinkage is told by hand."""

import pytest
import torch

from tests.discovery.models import Push, hooked, marked_vit, noise_images
from ttreg_interp.discovery.checkpoint import Shard
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.trial import Trial
from ttreg_interp.errors import LayoutError
from ttreg_interp.interventions import Empty, ExtraTokens, NeuronSet, TestTimeRegister, ZeroNeurons

PUSHES = (Push(1, 3, (0, 5)), Push(2, 7, (9, 12), mark=1, along=1, size=150))
IMAGES = noise_images(7)
ARMS = {
    "nothing": Empty(),
    "bare register": ExtraTokens(),
    "register": TestTimeRegister({1: [3]}),
    "zeroed": ZeroNeurons({2: [7]}),
}


@pytest.fixture(scope="module", params=["[CLS]", "no [CLS]"])
def trial(request):
    model = hooked(marked_vit(*PUSHES, class_token=request.param == "[CLS]"))
    detection = ScoringRun.of(model, IMAGES, FindConfig()).start(Shard()).detection
    return Trial(model, detection, 1, NeuronSet()).with_images(IMAGES.split(3))


def norms(model, arm) -> torch.Tensor:
    with model.intervened(arm):
        _, cache = model.run_with_cache(IMAGES)
    return cache["resid_post", 2][:, cache.layout.patches].norm(dim=-1)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_that_of_whole_forward_passes(trial, arm):
    result = trial.run(ARMS[arm])
    intact = trial.model(IMAGES)
    with trial.model.intervened(ARMS[arm]):
        drift = 1 - torch.cosine_similarity(trial.model(IMAGES), intact, dim=-1)
    torch.testing.assert_close(result.drift, drift, atol=1e-6, rtol=1e-4)
    above = norms(trial.model, ARMS[arm]) > trial.detection.threshold.value
    assert torch.equal(result.outliers, above.sum(dim=1).double())


def test_shrinkage_is_the_share_of_the_outliers_norm_that_goes(trial):
    before = norms(trial.model, ExtraTokens())
    after = norms(trial.model, TestTimeRegister({1: [3]}))
    places = [0, 5, 9, 12]
    expected = 1 - after[:, places].mean(dim=1) / before[:, places].mean(dim=1)
    (effect,) = trial.effects([(1, 3)])
    torch.testing.assert_close(effect.shrinkage, expected.double(), atol=1e-5, rtol=1e-4)
    assert effect.outliers_left == 0.5


def test_with_neurons_moved_the_rest_is_told_of_what_they_leave(trial):
    (rest,) = trial.effects([(2, 7)], moved=[(1, 3)])
    assert rest.outliers_left == 0
    assert rest.shrinkage.min() > 0.3
    assert trial.prominence([]) > 5 > trial.prominence([(1, 3), (2, 7)])


def test_neurons_before_the_first_layer_are_refused_instead_of_left_alone(trial):
    with pytest.raises(LayoutError, match="layer 0 cannot be moved in a trial .* begin at layer 1"):
        trial.register([(0, 3)])
    with pytest.raises(LayoutError, match="Begin it at layer 0"):
        trial.effects([(0, 3)])


def test_every_image_run_is_counted(trial):
    ticks: list[int] = []
    counted = Trial(trial.model, trial.detection, 1, NeuronSet(), ticks.append)
    counted.with_images(IMAGES.split(3)).run(Empty())
    assert ticks == [3, 3, 1] * 2
