"""Which neurons make the outliers of one image."""

from jaxtyping import Float
from torch import Tensor

from ttreg_interp.hooked import HookedViT


def rank_neurons(
    model: HookedViT, pixels: Float[Tensor, "1 channel height width"], most: int = 12
) -> list[tuple[int, int, float]]:
    """(layer, neuron, score) of the neurons that write most of this image's outliers, best first.

    The score is `projection` of `NeuronScores.score`. One image ranks; it does not tell how many
    neurons are enough: `find_register_neurons` does, from many.

    Args:
        model: any HookedViT.
        pixels: one preprocessed image.
        most: how many.

    Raises:
        DataError: the image has no outliers.

    Example:
        >>> from ttreg_interp.interventions import NeuronSet
        >>> from ttreg_interp.testbed import photograph_tensor, planted_vit
        >>> vit = planted_vit(depth=6, image_size=112)
        >>> ranked = rank_neurons(HookedViT.wrap(vit.module), photograph_tensor(112)[:1], most=6)
        >>> {(layer, neuron) for layer, neuron, _ in ranked} == set(NeuronSet.of(vit.truth))
        True
    """
    from ttreg_interp.discovery.config import FindConfig
    from ttreg_interp.discovery.observe import Observer
    from ttreg_interp.discovery.scores import read_scores, score_neurons
    from ttreg_interp.discovery.stream import ImageStream
    from ttreg_interp.discovery.survey import detect, survey_norms

    config = FindConfig().resolved()
    stream = ImageStream.for_model(model, pixels, batch_size=1, workers=0)
    detection = detect(model, survey_norms(model, stream), config)
    last = detection.detect_layer
    layers = range(min(1, last), last + 1)
    sums = score_neurons(Observer(model, detection, layers), stream)
    assert config.score is not None
    return read_scores(model, layers, sums).ranking(config.score)[:most]
