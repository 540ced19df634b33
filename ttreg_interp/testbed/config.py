"""What a planted ViT is to be: its sizes, and where its register neurons lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.testbed.circuit import Circuit, Reserved
from ttreg_interp.testbed.towers import FAMILIES, Shape

LayerCounts = tuple[tuple[int, int], ...]
"""Pairs of layer and number of neurons, in the order of the layers."""

SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
)
"""Width, depth and heads of the named sizes."""

FIRST_LAYER = 2
"""The first layer that can hold register neurons: blocks before it find the flat patches."""

_FEWEST_PATCHES = 16
_LARGEST_SHARE = 8


@dataclass(frozen=True)
class PlantedConfig:
    """A planted ViT, in full: equal configurations give equal weights.

    Raises:
        UnsupportedModelError: If the circuit does not fit into the ViT.
        LayoutError: If image and patch size do not fit together.

    Example:
        >>> config = PlantedConfig(detect={2: 3}, amplify={3: 2})
        >>> config.detect, config.emerges_at
        (((2, 3),), 3)
    """

    seed: int = 0
    """Of all weights and of the choice of neurons."""
    layout: str = "timm"
    """Whose `VisionTransformer`: "timm", or "open_clip" (its image tower, with `ln_pre`)."""
    size: str = "tiny"
    """"tiny" (192 wide, 3 heads), "small" (384, 6) or "base" (768, 12), all of 12 blocks."""
    width: int | None = None
    """d_model, in place of that of `size`."""
    depth: int | None = None
    """Number of blocks, in place of that of `size`."""
    heads: int | None = None
    """Attention heads of a layer, in place of that of `size`."""
    image_size: int = 224
    """Height and width of `pixels`."""
    patch_size: int = 16
    """Height and width of a patch, in pixels."""
    detect: Mapping[int, int] | LayerCounts = ((2, 3),)
    """Layer -> number of register neurons that start outliers on flat patches. A mapping is
    accepted and stored as sorted pairs."""
    amplify: Mapping[int, int] | LayerCounts = ((3, 2), (4, 1))
    """Layer -> number of register neurons that make a start grow. Behind all that detect; if there
    are none, the last layer that detects pushes all the way."""
    norm: float = 60.0
    """What the register neurons push in all, in units of sqrt(d_model): makes outliers of some tens
    of median norms. The content of an outlier leaks through the sink in inverse proportion."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Preprocessing: subtracted from each channel on the scale 0 to 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Preprocessing: divides each channel after that."""
    circuit: Circuit = field(default_factory=Circuit)
    """The constants of the circuit."""

    def __post_init__(self) -> None:
        for name in ("detect", "amplify"):
            counts = dict(getattr(self, name))
            object.__setattr__(self, name, tuple(sorted(counts.items())))
        self._check_names()
        self._check_grid()
        self._check_width()
        self._check_layers()

    @property
    def shape(self) -> Shape:
        """The sizes of the ViT."""
        width, depth, heads = SIZES[self.size]
        return Shape(
            width=width if self.width is None else self.width,
            depth=depth if self.depth is None else self.depth,
            heads=heads if self.heads is None else self.heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )

    @property
    def layers(self) -> dict[int, int]:
        """Layer -> number of register neurons of either kind, in the order of the layers."""
        return dict(sorted([*dict(self.detect).items(), *dict(self.amplify).items()]))

    @property
    def emerges_at(self) -> int:
        """The layer whose MLP makes outliers: the first that amplifies, else the last that detects."""
        return min(dict(self.amplify), default=max(dict(self.detect)))

    def _check_names(self) -> None:
        for name, allowed in (("layout", FAMILIES), ("size", SIZES)):
            if getattr(self, name) not in allowed:
                raise UnsupportedModelError(
                    f"{name}={getattr(self, name)!r} is unknown. Allowed: {', '.join(allowed)}."
                )

    def _check_grid(self) -> None:
        if self.image_size % self.patch_size or self.shape.patches < _FEWEST_PATCHES:
            raise LayoutError(
                f"Images of {self.image_size} px in patches of {self.patch_size} px: the image "
                f"must be a whole number of patches wide, and hold at least {_FEWEST_PATCHES}, "
                "or outliers cannot be rare. Change image_size or patch_size."
            )

    def _check_width(self) -> None:
        shape, filters = self.shape, self.circuit.filters
        reserved = Reserved.count(filters)
        if shape.width < 2 * reserved:
            raise UnsupportedModelError(
                f"A width of {shape.width} is too narrow: the circuit reserves {reserved} "
                f"dimensions ({filters} of them filters), and at least as many must stay for "
                f"content. Take a width of {2 * reserved} or more, or fewer circuit.filters."
            )
        if shape.width % shape.heads or shape.width // shape.heads < 2:
            raise UnsupportedModelError(
                f"{shape.heads} heads do not divide a width of {shape.width} into heads of at "
                "least 2 dimensions. Change heads or width."
            )
        if not 1 <= filters < self.patch_size**2:
            raise UnsupportedModelError(
                f"circuit.filters={filters}: a patch of {self.patch_size} px has "
                f"{self.patch_size**2 - 1} zero-mean cosines. Take 1 to that many."
            )

    def _check_layers(self) -> None:
        detect, amplify = dict(self.detect), dict(self.amplify)
        depth, neurons = self.shape.depth, 4 * self.shape.width
        if not detect:
            raise UnsupportedModelError("detect={} plants nothing. For that, use clean_vit().")
        first, last = min(detect), max([*detect, *amplify])
        if first < FIRST_LAYER or last > depth - 2:
            raise UnsupportedModelError(
                f"Register neurons in layers {first} to {last} of {depth} blocks: allowed are "
                f"{FIRST_LAYER} to {depth - 2}, as flat patches must be found before and a block "
                "must attend to the outliers after. Change detect and amplify, or depth."
            )
        if amplify and min(amplify) <= max(detect):
            raise UnsupportedModelError(
                f"Layer {min(amplify)} amplifies and layer {max(detect)} detects: amplifiers see "
                "only what earlier layers pushed. Let all of amplify come after all of detect."
            )
        most = neurons // _LARGEST_SHARE
        for layer, count in self.layers.items():
            if not 1 <= count <= most:
                raise UnsupportedModelError(
                    f"{count} register neurons in layer {layer}: allowed are 1 to {most}, an "
                    f"eighth of its {neurons} neurons, so that they stay the exception."
                )
