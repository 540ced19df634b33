"""Targets for every image of a batch: one set for all, or one each."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook


def per_image(
    items: tuple[Any, ...], is_item: Callable[[Any], bool], what: str
) -> tuple[tuple[Any, ...], ...]:
    """One tuple of items for every image; one alone where `items` are for all."""
    if items and all(is_item(item) for item in items):
        return (items,)
    if items and all(isinstance(one, tuple) and all(map(is_item, one)) for one in items):
        return items
    raise InterventionError(
        f"Expected {what}, once for all images or as one tuple an image; found {items!r}."
    )


def counts(images: tuple[tuple[Any, ...], ...], what: str) -> str:
    """How many of `what` there are, by image, in words."""
    numbers = ", ".join(str(len(one)) for one in images)
    return f"{numbers} {what}" + (f" in {len(images)} images" if len(images) > 1 else "")


def check_batch(at: str, n_images: int, described: str) -> list[NamedHook]:
    """Compare the number of target sets with the batch before anything is edited at `at`."""
    if n_images == 1:
        return []

    def check(activation: Tensor, hook: Any) -> None:
        if len(activation) != n_images:
            raise InterventionError(
                f"Targets for {n_images} images ({described}), but a batch of {len(activation)}. Give "
                "one set for all images, or as many sets as the batch has images."
            )

    blocks, layer, *_ = (*at.split("."), "")
    return [(f"blocks.{layer}.hook_resid_pre" if blocks == "blocks" else "hook_embed", check)]
