"""An intervention inside a model: the source's own class, without hooks."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttreg_interp.deploy.check import check_equal
from ttreg_interp.deploy.frozen import FixedPoint, freeze
from ttreg_interp.errors import InterventionError, TTRegError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.sources import common, parts_of
from ttreg_interp.interventions import Intervention

POSITIONS = ("rope", "position_embeddings")
"""What sources call the rotary table that they hand to every block."""


def bake(model: HookedViT, intervention: Intervention, drop_registers: bool = True) -> nn.Module:
    """A copy of the source that always runs under an intervention.

    It is of the source's own class, with the source's state dict; only the forward of its blocks is
    another, that of the hooked model. So embedding, pooling, heads and output classes are the
    source's, and gradients, autocast, half precision, `torch.compile`, `copy.deepcopy` and pickle
    work. It has three attributes more: `intervention`, and `num_prefix_tokens` and
    `num_register_tokens`, which count rows of the tokens that it returns.

    Args:
        model: any HookedViT; it is left as it is.
        intervention: what to do; one that edits anything outside the blocks is refused.
        drop_registers: whether the last block takes test-time registers out, so that no reader sees
            them. Otherwise they stand after the source's prefix in the tokens, and poolings that
            read every row are refused. What the blocks between return holds them in either case.

    Returns:
        The module, in evaluation mode.

    Raises:
        InterventionError: the intervention does not fit the model, acts outside its blocks, or gives
            another output there than in the hooked model.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> model, clean = load("timm:test_vit?random"), TestTimeRegister({3: [7]})
        >>> baked = bake(model, clean)
        >>> type(baked) is type(model.source), baked.num_register_tokens
        (True, 0)
    """
    tower: Any = copy.deepcopy(model.source).eval()
    program = _Program(tower, intervention, drop_registers)
    _check_inside_blocks(program.frozen, intervention)
    for layer, block in enumerate(_source_blocks(tower, program.frozen)):
        block.forward = _BlockForward(program, layer)
    kept = 0 if drop_registers else intervention.n_added_tokens
    tower.intervention = intervention
    if common.is_instance(tower, "transformers", "PreTrainedModel"):
        tower.save_pretrained = _refuse_to_save
    tower.num_prefix_tokens = model.layout().n_prefix + kept
    tower.num_register_tokens = model.layout().n_trained_registers + kept
    _check(tower, model, intervention, model.image_size)
    if kept and model.parts.resizable:  # who resizes position embeddings counts prefix rows
        _check(tower, model, intervention, _other_size(model))
    return tower


class _Program:
    """The blocks of a baked tower; a copied or unpickled one is made anew from what it is told."""

    def __init__(self, tower: nn.Module, intervention: Intervention, drop_registers: bool):
        self.tower = tower
        self.intervention = intervention
        self.drop_registers = drop_registers
        self._frozen: HookedViT | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frozen": None}

    @property
    def frozen(self) -> HookedViT:
        """The hooked forward over the leaf modules of the tower, with the edits in it."""
        if self._frozen is None:
            self._frozen = freeze(HookedViT(*parts_of(self.tower)), self.intervention)
        return self._frozen

    def run(self, layer: int, x: Tensor, positions: Any) -> Float[Tensor, "batch token d_model"]:
        """Block `layer`; the first also edits what enters it, the last drops the registers."""
        model = self.frozen
        if layer == 0:
            x = x if model.parts.ln_pre is not None else model.hook_embed(x)
            x = model.hook_full_embed(x)
        x = model.blocks[layer](x, positions)
        return self._without_registers(x) if layer == len(model.blocks) - 1 else x

    def _without_registers(self, x: Tensor) -> Tensor:
        added = self.intervention.n_added_tokens if self.drop_registers else 0
        n_prefix = self.frozen.layout().n_prefix
        return torch.cat((x[:, :n_prefix], x[:, n_prefix + added :]), dim=1) if added else x


class _BlockForward:
    """The forward of one baked block, called as the source calls its own."""

    def __init__(self, program: _Program, layer: int):
        self.program = program
        self.layer = layer

    def __call__(
        self, x: Tensor, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch token d_model"]:
        positions = next((kwargs.pop(name) for name in POSITIONS if name in kwargs), None)
        masks = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if masks:
            raise InterventionError(
                f"A baked block takes tokens and a rotary table; the caller also hands it a tensor of "
                f"shape {tuple(masks[0].shape)}, such as an attention mask, which has no place for "
                "registers. Run the model without masks, on whole images."
            )
        return self.program.run(self.layer, x, positions)


def _other_size(model: HookedViT) -> tuple[int, int]:
    (height, width), (rows, columns) = model.image_size, model.parts.patch_size
    return height + rows, width + columns


def _check(
    tower: nn.Module, model: HookedViT, intervention: Intervention, image_size: tuple[int, int]
) -> None:
    reference = parts_of(tower)[1].reference
    try:
        check_equal(lambda pixels: (reference(pixels),), model, intervention, image_size=image_size)
    except TTRegError:
        raise
    except Exception as error:  # whatever the source's own code makes of one token more
        raise InterventionError(
            f"With {intervention} baked in, the source's own forward fails ({error}). Where registers "
            "are kept, take drop_registers=True; otherwise use model.intervened(...)."
        ) from error


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise UnsupportedModelError(
        "A baked model saves the weights of its source, and what is baked in would be lost. Use "
        "tt.save_pretrained(model, intervention, folder) with the hooked model."
    )


def _source_blocks(tower: nn.Module, model: HookedViT) -> list[nn.Module]:
    """The tower's block modules: each the smallest that holds both a first norm and a last linear."""
    names = {module: name.split(".") for name, module in tower.named_modules()}
    blocks = []
    for block in model.parts.blocks:
        ends = zip(names[block.ln1], names[block.mlp.out], strict=False)
        shared = [first for first, last in ends if first == last]
        blocks.append(tower.get_submodule(".".join(shared)))
    return blocks


def _check_inside_blocks(frozen: HookedViT, intervention: Intervention) -> None:
    """Embedding, final norm and heads run as the source wrote them: edits there would be lost."""
    entry = {"hook_full_embed"} | ({"hook_embed"} if frozen.parts.ln_pre is None else set())
    outside = [
        point.name
        for point in frozen.modules()
        if isinstance(point, FixedPoint) and point.has_hooks()
        if not point.name.startswith("blocks.") and point.name not in entry
    ]
    if outside:
        raise InterventionError(
            f"{intervention} acts on {', '.join(outside)}, outside the blocks, where a baked model is "
            "the source as it is. Use model.intervened(...), or tt.export, which takes it all."
        )
