"""Whether a deployed model is the hooked one: noise images tell."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.contract import TOLERANCE
from ttreg_interp.hooked.vit import ReturnType
from ttreg_interp.interventions import Intervention

Run = Callable[[Tensor], Sequence[Tensor]]

OUTPUTS: dict[ReturnType, tuple[str, ...]] = {
    "output": ("output",),
    "tokens": ("tokens",),
    "both": ("output", "tokens"),
}
"""What a model returns, by `return_type`."""


def noise(
    model: HookedViT, n_images: int, image_size: tuple[int, int] | None = None
) -> Float[Tensor, "batch channel height width"]:
    """Images of noise as the model takes them, the same for the same number."""
    shape = (n_images, model.parts.n_channels, *(image_size or model.image_size))
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(n_images))
    return pixels.to(model.cfg.device, model.cfg.dtype)


@torch.no_grad()
def check_equal(
    run: Run,
    model: HookedViT,
    intervention: Intervention,
    return_type: ReturnType = "output",
    n_images: int = 2,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Refuse `run` unless it returns what the hooked model returns under the intervention.

    Raises:
        InterventionError: another output, or NaN; says how much it differs.
    """
    pixels = noise(model, n_images, image_size)
    with model.torch_kernels(), model.intervened(intervention):
        expected = model(pixels, return_type)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for name, want, found in zip(OUTPUTS[return_type], wanted, run(pixels), strict=True):
        scale = want.abs().max().clamp_min(torch.finfo(want.dtype).tiny)
        error = float((found.to(want) - want).abs().max() / scale)
        if not error <= TOLERANCE[want.dtype]:
            raise InterventionError(
                f"{model.cfg.model_name} with {intervention} inside: {name!r} differs by {error:.1e} "
                "of its largest value from the hooked model's. A pooling that reads every row sees "
                "registers that are kept (take drop_registers=True), narrow dtypes round (take "
                "float32); otherwise use model.intervened(...)."
            )
