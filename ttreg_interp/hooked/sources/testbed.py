"""The embedded models: a ViT with planted register neurons, and its twin without."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import ViTParts
from ttreg_interp.hooked.sources import Loaded, Request


def tower(module: nn.Module) -> nn.Module | None:
    """None: the embedded models are ordinary timm and open_clip modules, which those files know."""
    return None


def parts(module: nn.Module) -> ViTParts:
    """Never asked, since `tower` claims nothing.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        "Embedded models are described by the source file of their library."
    )


def preprocess(module: nn.Module, image_size: tuple[int, int]) -> Callable[[Any], Tensor] | None:
    """None: see `load`."""
    return None


def load(request: Request) -> Loaded:
    """`KIND[/LAYOUT[/SIZE[/SEED]]]`, e.g. `planted`, `planted/open_clip/small/3`, `clean`.

    Raises:
        UnsupportedModelError: another kind, layout, size, or a seed that is no number.
    """
    from torchvision.transforms import v2

    from ttreg_interp.testbed import clean_vit, planted_vit

    kind, layout, size, seed = [*request.name.split("/"), *("", "", "", "")][:4]
    makers = {"planted": planted_vit, "clean": clean_vit}
    if kind not in makers or (seed and not seed.isdigit()) or request.checkpoint or request.random:
        raise UnsupportedModelError(
            f"testbed:{request.name} is none of the embedded models. Write testbed:KIND[/LAYOUT"
            "[/SIZE[/SEED]]] with KIND planted or clean, LAYOUT timm or open_clip, SIZE tiny, small "
            "or base, and no checkpoint: the seed makes the weights."
        )
    options: dict[str, Any] = {
        "layout": layout or "timm",
        "size": size or "tiny",
        "seed": int(seed or 0),
    }
    if request.image_size:
        options["image_size"] = request.image_size[0]
    planted = makers[kind](**options)
    size_in_pixels = planted.config.image_size
    steps = [
        v2.PILToTensor(),
        v2.Resize(size_in_pixels, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size_in_pixels),
        lambda image: image.float() / 255,
        v2.Normalize(planted.mean, planted.std),
    ]
    return Loaded(planted.module, v2.Compose(steps))
