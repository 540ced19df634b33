"""What a site map cannot tell of a vision transformer that has no source file: its sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn

from ttreg_interp.backends.sites import SiteMap
from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, ViTParts
from ttreg_interp.hooked.sources.common import class_name


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision transformer that only its site map describes.

    Example:
        >>> TowerShape(n_layers=45, n_heads=25, image_size=(448, 448), patch_size=(14, 14)).n_cls
        1
    """

    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads of a layer."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    patch_size: tuple[int, int]
    """Height and width of a patch in pixels."""
    n_cls: int = 1
    """Class rows in front."""
    n_trained_registers: int = 0
    """Learned registers behind them."""
    n_channels: int = 3
    """Colour channels."""
    resizable: bool = False
    """Whether it takes images of other sizes."""
    reference: Callable[[Tensor], Tensor] | None = None
    """Pixels to the output as one tensor; None: the tower itself returns one."""


def parts_from(tower: nn.Module, sites: SiteMap, shape: TowerShape) -> ViTParts:
    """The parts of a tower that has no source file; what nobody said is refused when it is asked for.

    Raises:
        UnsupportedModelError: a path of the map that leads nowhere, or not to a linear where one
            must be.
    """
    return ViTParts(
        family=class_name(tower),
        embed=partial(_positions_only, sites.inside.rotates),
        blocks=tuple(_block(tower, sites, shape, layer) for layer in range(shape.n_layers)),
        pool=_unknown("how tokens are pooled"),
        project=_unknown("the head"),
        reference=shape.reference or tower,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        ln_pre=None if sites.ln_pre is None else _module(tower, sites.ln_pre),
        n_cls=shape.n_cls,
        n_trained_registers=shape.n_trained_registers,
        resizable=shape.resizable,
        n_channels=shape.n_channels,
    )


def _positions_only(rotates: bool, pixels: Tensor) -> tuple[Tensor, bool | None]:
    """No tokens, which a trace never asks for; the positions tell that there is a rotation."""
    return pixels.new_empty(len(pixels), 0, 0), rotates or None


def _block(tower: nn.Module, sites: SiteMap, shape: TowerShape, layer: int) -> BlockParts:
    path, inside = sites.block.format(layer=layer), sites.inside
    attn_out, mlp_out = (
        _linear(tower, f"{path}.{out}") for out in (inside.attn_out, inside.mlp_out)
    )
    mlp_path = inside.mlp_out.rpartition(".")[0]
    return BlockParts(
        ln1=_module(tower, f"{path}.{inside.ln1}"),
        attn=replace(
            _attention(shape, attn_out, inside.rotates),
            gamma=_gamma(tower, path, inside.attn_gamma),
        ),
        ln2=_module(tower, f"{path}.{inside.ln2}"),
        mlp=replace(
            _mlp(_module(tower, f"{path}.{mlp_path}") if mlp_path else None, mlp_out),
            gamma=_gamma(tower, path, inside.mlp_gamma),
        ),
    )


def _gamma(tower: nn.Module, block: str, name: str | None) -> Callable[[], Tensor] | None:
    if name is None:
        return None
    module, _, parameter = f"{block}.{name}".rpartition(".")
    _named(tower.get_parameter, tower, f"{block}.{name}")
    return lambda: tower.get_submodule(module).get_parameter(parameter)


def _attention(shape: TowerShape, out: nn.Linear, rotates: bool) -> AttentionParts:
    d_head = out.in_features // shape.n_heads
    return AttentionParts(
        n_heads=shape.n_heads,
        d_head=d_head,
        qkv=_unknown("how tokens become q, k and v"),
        qkv_weights=_unknown("the weights of q, k and v"),
        qkv_biases=_unknown("the biases of q, k and v"),
        out=out,
        scale=d_head**-0.5,
        rotate=_unknown("how q and k are turned") if rotates else None,
    )


def _mlp(mlp: nn.Module | None, out: nn.Linear) -> MLPParts:
    neurons = _unknown("the module of the MLP") if mlp is None else _neurons(mlp, out)
    return MLPParts(
        project=neurons, act=nn.Identity(), out=out, in_weights=_unknown("the MLP's first weights")
    )


def _neurons(mlp: nn.Module, out: nn.Linear) -> Callable[[Tensor], tuple[Tensor, None]]:
    """What `out` reads when the MLP runs by itself."""

    def read(x: Tensor) -> tuple[Tensor, None]:
        seen: list[Tensor] = []
        handle = out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            mlp(x)
        finally:
            handle.remove()
        return seen[0], None

    return read


def _unknown(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise UnsupportedModelError(
            f"A site map does not tell {what}. Write a source file for the family "
            "(docs/how-to/add-a-model.md), or leave out what asks for it: of discovery, the "
            "evidence from weights (FindConfig(evidence=False))."
        )

    return refuse


def _module(tower: nn.Module, path: str) -> nn.Module:
    return _named(tower.get_submodule, tower, path)


def _named(get: Callable[[str], Any], tower: nn.Module, path: str) -> Any:
    try:
        return get(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"The site map names {path!r}, but {class_name(tower)} has no such module ({error}). "
            "Paths start at the tower; block paths hold '{layer}'."
        ) from None


def _linear(tower: nn.Module, path: str) -> nn.Linear:
    module = _module(tower, path)
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(
            f"The site map's {path!r} is a {class_name(module)}; attn_out and mlp_out are the linears "
            "that read the heads and the neurons."
        )
    return module
