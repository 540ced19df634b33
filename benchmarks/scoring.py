"""The scoring pass of discovery against the plain forward, and against a loop over single images.

The loop does what the authors' does (arXiv 2506.08010, Algorithm 1, as their code runs it): one image
a forward, every layer's neurons and the residual stream of every layer kept, neurons of outliers
averaged afterwards.
"""

import torch
from torch import Tensor

from benchmarks.timing import Work
from ttreg_interp.discovery import FindConfig, Shard
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.priors import CONTENT_IMAGES
from ttreg_interp.discovery.scores import add_batch
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.hooked import HookedViT
from ttreg_interp.testbed import photograph_tensor, planted_vit


def scoring(size: str, image_size: int) -> dict[str, Work]:
    """Arms over the same 8 photographs; the first one is the base."""
    vit = planted_vit(size=size, image_size=image_size)
    model, pixels = HookedViT.wrap(vit.module), photograph_tensor(image_size)[:8]
    # numbered as in the bulk of a long run: contents are compared in the first images only
    batch = Batch(pixels, CONTENT_IMAGES + torch.arange(len(pixels)))
    last, found = (_observer(model, pixels, layer) for layer in (-1, None))
    sums, others = ExactSums(), ExactSums()
    return {
        "plain forward": lambda: model.source(pixels),
        "scoring, outliers at the last layer": lambda: add_batch(sums, last, batch, seed=0),
        "scoring, outliers where they are found": lambda: add_batch(others, found, batch, seed=0),
        "a loop over images that keeps everything": lambda: _loop(model, pixels, last),
    }


def _observer(model: HookedViT, pixels: Tensor, detect_layer: int | None) -> Observer:
    run = ScoringRun.of(model, pixels, FindConfig(detect_layer=detect_layer))
    detection = run.start(Shard()).detection
    return Observer(model, detection, run.layers(detection.detect_layer))


def _loop(model: HookedViT, pixels: Tensor, observer: Observer) -> Tensor:
    blocks = model.source.blocks
    kept: dict[str, list[Tensor]] = {"post": [], "resid": []}
    handles = [
        *(block.mlp.act.register_forward_hook(_keeper(kept["post"])) for block in blocks),
        *(block.register_forward_hook(_keeper(kept["resid"])) for block in blocks),
    ]
    try:
        for image in pixels:
            model.source(image[None])
    finally:
        for handle in handles:
            handle.remove()
    post, resid = (
        torch.stack(values).unflatten(0, (len(pixels), len(blocks))) for values in kept.values()
    )
    above = resid[:, -1, 0].norm(dim=-1) > observer.detection.threshold.value
    means = [
        post[i, :, 0, above[i]].abs().mean(dim=1) for i in range(len(pixels)) if above[i].any()
    ]
    return torch.stack(means).mean(dim=0)


def _keeper(kept: list[Tensor]):
    return lambda module, inputs, output: kept.append(output)
