"""Classes without labels: random crops of an image are one class, so that features can be probed.

The question put to a probe is 'which image is this crop of?'. It is not ImageNet's; accuracies
compare tokens and arms with each other, not with published ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from analyses._bench import Bench
from ttreg_interp.interventions import Intervention, TestTimeRegister
from ttreg_interp.metrics.classification import Labelled
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.metrics.probes import LogisticProbe, linear_probe

CLS, REGISTER = "[CLS]", "test-time register"
PROBE = LogisticProbe(grid=(1.0, 1e-1, 1e-2), seeds=(0,), iterations=50)
"""Three penalties, chosen on held-out crops."""


@dataclass(frozen=True)
class Crops:
    """Crops of images, and which image each is of."""

    pixels: Float[Tensor, "crop channel height width"]
    """Enlarged to the size of the images, some mirrored."""
    labels: Int[Tensor, " crop"]
    """Number of the image."""

    def split(self, values: Float[Tensor, "crop d_model"]) -> tuple[Labelled, Labelled]:
        """Two thirds of every image's crops to train on, the others to test on."""
        n_each = int((self.labels == 0).sum())
        place = torch.arange(len(self.labels)) % n_each
        train = place < max(1, 2 * n_each // 3)
        return Labelled(values[train], self.labels[train]), Labelled(values[~train], self.labels[~train])  # fmt: skip


def crops(bench: Bench, n_images: int, n_each: int, least: float = 0.6) -> Crops:
    """`n_each` crops of every image, of `least` to all of its height and width."""
    generator = torch.Generator().manual_seed(bench.seed)
    size = bench.pixels.shape[-2:]
    made = []
    chosen = bench.pixels[:n_images]
    for image in chosen:
        for _ in range(n_each):
            part = least + (1 - least) * float(torch.rand(1, generator=generator))
            height, width = (int(part * side) for side in size)
            top = int(torch.randint(size[0] - height + 1, (1,), generator=generator))
            left = int(torch.randint(size[1] - width + 1, (1,), generator=generator))
            crop = image[None, :, top : top + height, left : left + width]
            crop = interpolate(crop, size=size, mode="bicubic", align_corners=False)
            made.append(crop.flip(-1) if torch.rand(1, generator=generator) < 0.5 else crop)
    labels = torch.arange(len(chosen)).repeat_interleave(n_each)
    return Crops(torch.cat(made), labels)


def register_tokens(
    bench: Bench, pixels: Tensor, arm: TestTimeRegister
) -> dict[str, Float[Tensor, "crop d_model"]]:
    """Last block's [CLS], where there is one, and first register under an arm."""
    tokens, layout = last_tokens(bench, pixels, arm), bench.layout(arm)
    found = {REGISTER: tokens[:, layout.test_time_registers.start]}
    return found | ({CLS: tokens[:, 0]} if layout.n_cls else {})


def last_tokens(
    bench: Bench, pixels: Tensor, arm: Intervention | None = None
) -> Float[Tensor, "crop token d_model"]:
    """Output of the last block, all tokens."""
    read = {"tokens": (f"blocks.{bench.last}.hook_resid_post", lambda resid: resid)}
    return bench.collect(read, arm, pixels)["tokens"]


def probed(found: Crops, values: Float[Tensor, "crop d_model"]) -> Interval:
    """Accuracy of a linear probe on one token, with its interval over test crops."""
    train, test = found.split(values)
    return linear_probe(train, test, PROBE).accuracy
