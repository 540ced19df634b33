"""Where outliers sit: at fixed positions, or on patches that look like their neighbours."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.hooked.layout import TokenLayout

CONTENT_IMAGES = 256
"""Images of which patches are compared with their neighbours: the first ones of the set."""


@dataclass(frozen=True)
class OutlierPriors:
    """Counts of outliers, and two numbers on where they sit."""

    n_images: int
    """Images looked at."""
    images_with_outliers: int
    """Images with at least one."""
    outliers_per_image: float
    """Mean over all images."""
    outlier_share: float
    """Share of the patches that are outliers."""
    cls_outliers: int
    """Images whose [CLS] norm exceeds the threshold too."""
    position_repeat: float
    """Chance that another image has an outlier at the position of a given one: 1 where outliers sit
    at fixed positions."""
    position_chance: float
    """What position_repeat would be if outliers fell anywhere."""
    neighbour_similarity: float
    """Mean cosine of an outlier's patch embedding to its four neighbours' (arXiv 2309.16588, 2.2)."""
    neighbour_similarity_others: float
    """The same of the other patches of images with outliers."""
    content_auc: float
    """Chance that an outlier is more like its neighbours than another patch of its image: 0.5 where
    content says nothing."""

    @property
    def kind(self) -> str:
        """What places them, in words."""
        if self.images_with_outliers < 2:
            return "unknown (fewer than two images with outliers)"
        fixed = self.position_repeat > 0.5 and self.position_repeat > 3 * self.position_chance
        smooth = self.content_auc > 0.75
        return {
            (True, True): "fixed positions, and patches like their neighbours",
            (True, False): "fixed positions",
            (False, True): "patches like their neighbours",
            (False, False): "neither fixed positions nor patches like their neighbours",
        }[fixed, smooth]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self) | {"kind": self.kind}


def neighbour_similarity(
    patches: Float[Tensor, "batch height width d_model"],
) -> Float[Tensor, "batch height width"]:
    """Mean cosine of each patch embedding to its (up to) four neighbours'.

    Args:
        patches: patch embeddings without position embeddings.
    """
    unit = torch.nn.functional.normalize(patches.float(), dim=-1)
    total, count = torch.zeros_like(unit[..., 0]), torch.zeros_like(unit[..., 0])
    down = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    right = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1)
    for sides, cosine in (
        ((total[:, 1:], count[:, 1:]), down),
        ((total[:, :-1], count[:, :-1]), down),
        ((total[:, :, 1:], count[:, :, 1:]), right),
        ((total[:, :, :-1], count[:, :, :-1]), right),
    ):
        sides[0].add_(cosine)
        sides[1].add_(1)
    return total / count.clamp_min(1)


def content_similarity(
    model: Any, pixels: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch patch"]:
    """How much each patch's content is like its neighbours'.

    What an image of zeros embeds to is subtracted, which leaves the content without its position:
    exactly so where the patch embedding is linear in the pixels, as a convolution is.
    """
    kept: list[Tensor] = []
    read = ("hook_embed", lambda embed, hook: kept.append(embed.detach()))
    blank = torch.zeros_like(pixels[:1])
    with torch.no_grad(), model.hooks(fwd_hooks=[read]):
        model(torch.cat((pixels, blank)), stop_at_layer=0)
    layout = model.layout(pixels.shape)
    patches = layout.grid(kept[0][:-1] - kept[0][-1:], token_axis=1)
    return neighbour_similarity(patches).flatten(1)


def tally(
    sums: ExactSums,
    outliers: Bool[Tensor, "batch token"],
    layout: TokenLayout,
    cls_above: Bool[Tensor, " batch"],
) -> None:
    """Count the outliers of a batch.

    Args:
        sums: where the counts go.
        outliers: which tokens are outliers, over the whole token axis.
        layout: of the token axis.
        cls_above: images whose [CLS] exceeds the threshold.
    """
    patches = outliers[:, layout.patches]
    sums.count("n_images", torch.tensor(len(patches)))
    sums.count("n_with", patches.any(dim=1).sum())
    sums.count("n_outliers", patches.sum())
    sums.count("n_patches", torch.tensor(patches.numel()))
    sums.count("n_cls", cls_above.sum())
    sums.count("position", patches.sum(dim=0))


def tally_content(
    sums: ExactSums, model: Any, batch: Batch, patches: Bool[Tensor, "batch patch"]
) -> None:
    """Compare outliers with their neighbours, in the first `CONTENT_IMAGES` images of the set.

    Args:
        sums: where the sums go.
        model: a HookedViT.
        batch: the images.
        patches: which patches are outliers.
    """
    looked_at = patches.any(dim=1) & ~patches.all(dim=1)
    looked_at &= (batch.index < CONTENT_IMAGES).to(looked_at.device)
    if not looked_at.any():
        return
    similarity = content_similarity(model, batch.pixels[looked_at])
    patches = patches[looked_at]
    sums.count("content_images", looked_at.sum())
    sums.count("content_on", patches.sum())
    sums.count("content_off", (~patches).sum())
    sums.add("similarity_on", similarity[patches].sum())
    sums.add("similarity_off", similarity[~patches].sum())
    pairs = zip(similarity, patches, strict=True)
    sums.add("auc", torch.tensor(sum(_auc(values, mask) for values, mask in pairs)))


def _auc(values: Float[Tensor, " patch"], mask: Bool[Tensor, " patch"]) -> float:
    on, off = values[mask][:, None], values[~mask][None]
    return float((on > off).float().mean() + 0.5 * (on == off).float().mean())


def read_priors(sums: ExactSums) -> OutlierPriors:
    """The numbers that `tally` and `tally_content` have gathered."""
    n_images, n_outliers = sums.whole("n_images"), sums.whole("n_outliers")
    at = sums.sums["position"].double()
    pairs = max(n_outliers * (n_images - 1), 1)
    share = n_outliers / max(sums.whole("n_patches"), 1)
    return OutlierPriors(
        n_images=n_images,
        images_with_outliers=sums.whole("n_with"),
        outliers_per_image=n_outliers / n_images,
        outlier_share=share,
        cls_outliers=sums.whole("n_cls"),
        position_repeat=float((at * (at - 1)).sum()) / pairs,
        position_chance=share,
        neighbour_similarity=_mean(sums, "similarity_on", "content_on"),
        neighbour_similarity_others=_mean(sums, "similarity_off", "content_off"),
        content_auc=_mean(sums, "auc", "content_images"),
    )


def _mean(sums: ExactSums, total: str, count: str) -> float:
    """A mean; 0 where nothing was there to be averaged."""
    return float(sums[total]) / sums.whole(count) if total in sums.sums else 0.0
