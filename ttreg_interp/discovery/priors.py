"""Where outliers sit: at fixed positions, or on patches that look like their neighbours."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.hooked.layout import TokenLayout


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


def blank_embedding(model: Any, pixels: Tensor) -> Float[Tensor, "token d_model"]:
    """What an image of zeros embeds to: subtracting it leaves the patch content without positions.

    Exact where the patch embedding is linear in the pixels, as a convolution is.
    """
    kept: list[Tensor] = []
    read = ("hook_embed", lambda embed, hook: kept.append(embed[0].detach()))
    with torch.no_grad(), model.hooks(fwd_hooks=[read]):
        model(torch.zeros_like(pixels[:1]), stop_at_layer=0)
    return kept[0]


def tally(
    sums: ExactSums,
    outliers: Bool[Tensor, "batch token"],
    layout: TokenLayout,
    similarity: Float[Tensor, "batch patch"],
    cls_above: Bool[Tensor, " batch"],
) -> None:
    """Count the outliers of a batch.

    Args:
        sums: where the counts go.
        outliers: which tokens are outliers, over the whole token axis.
        layout: of the token axis.
        similarity: `neighbour_similarity` of the patches, flattened.
        cls_above: images whose [CLS] exceeds the threshold.
    """
    patches = outliers[:, layout.patches]
    some = patches.any(dim=1)
    sums.count("n_images", torch.tensor(len(patches)))
    sums.count("n_with", some.sum())
    sums.count("n_outliers", patches.sum())
    sums.count("n_patches", torch.tensor(patches.numel()))
    sums.count("n_cls", cls_above.sum())
    sums.count("position", patches.sum(dim=0))
    sums.add("similarity_on", (similarity * patches).sum())
    sums.add("similarity_off", (similarity * ~patches)[some].sum())
    sums.count("n_off", (~patches)[some].sum())
    both = some & ~patches.all(dim=1)
    sums.count("n_auc", both.sum())
    pairs = zip(similarity[both], patches[both], strict=True)
    sums.add("auc", torch.tensor(sum(_auc(values, mask) for values, mask in pairs)))


def _auc(values: Float[Tensor, " patch"], mask: Bool[Tensor, " patch"]) -> float:
    on, off = values[mask][:, None], values[~mask][None]
    return float((on > off).float().mean() + 0.5 * (on == off).float().mean())


def read_priors(sums: ExactSums) -> OutlierPriors:
    """The numbers that `tally` has gathered."""
    n_images, n_outliers = sums.whole("n_images"), sums.whole("n_outliers")
    at = sums.sums["position"].double()
    pairs = max(n_outliers * (n_images - 1), 1)
    off = max(sums.whole("n_off"), 1)
    share = n_outliers / max(sums.whole("n_patches"), 1)
    return OutlierPriors(
        n_images=n_images,
        images_with_outliers=sums.whole("n_with"),
        outliers_per_image=n_outliers / n_images,
        outlier_share=share,
        cls_outliers=sums.whole("n_cls"),
        position_repeat=float((at * (at - 1)).sum()) / pairs,
        position_chance=share,
        neighbour_similarity=float(sums["similarity_on"]) / max(n_outliers, 1),
        neighbour_similarity_others=float(sums["similarity_off"]) / off,
        content_auc=float(sums["auc"]) / max(sums.whole("n_auc"), 1),
    )
