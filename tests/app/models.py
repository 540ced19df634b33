"""A small model with planted register neurons, and the explorer of it."""

from ttreg_interp.app.session import Explorer
from ttreg_interp.app.upload import Picture
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.testbed import photographs, planted_vit

SPEC = "small planted"
SIZE = 112


def explorer(**changes) -> Explorer:
    vit = planted_vit(image_size=SIZE, depth=6)

    def load(spec: str) -> HookedViT:
        from torchvision.transforms import v2

        model = HookedViT.wrap(vit.module)
        steps = [v2.PILToTensor(), v2.Resize(SIZE), v2.CenterCrop(SIZE), lambda x: x.float() / 255]
        model.preprocess = v2.Compose([*steps, v2.Normalize(vit.mean, vit.std)])
        model.spec = spec
        return model

    return Explorer(SPEC, NeuronSet.of(vit.truth), load=load, **changes)


def picture() -> Picture:
    return Picture(photographs(SIZE)["astronaut"], "astronaut.png")
