"""The loop over images that the paper's algorithm describes and its code runs, written anew.

What it does, in order (arXiv 2506.08010, Algorithm 1): one image a forward; the neurons, the residual
stream and the attention pattern of every layer are kept as numpy arrays, the attention computed in
the open for that; the arrays of all layers are joined; norms of the detection layer over all tokens
tell the outliers; the score of an image is the mean |activation| at them, of every layer and neuron,
where wanted only of neurons that are quiet on enough tokens; the scores of all images are stacked,
and averaged over those with outliers.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ttreg_interp.hooked import HookedViT


@dataclass(frozen=True)
class Loop:
    """The described algorithm on a timm ViT."""

    model: HookedViT
    """Of which only the source model and its preprocessing are used."""
    threshold: float
    """Norm above which a token is an outlier."""
    detect_layer: int = -1
    """Block whose output norms are compared with it."""
    keeps_attention: bool = True
    """Whether patterns are kept, which takes unfused attention."""
    sparsity: tuple[float, float] | None = None
    """Activation and share of the tokens of the sparsity filter; None: no filter."""

    @torch.no_grad()
    def __call__(self, files: Sequence[Path]) -> Float[Tensor, "layer neuron"]:
        """Mean scores over the images with outliers."""
        found = [score for score in map(self._image, files) if score is not None]
        return torch.stack(found).mean(dim=0)

    def _image(self, file: Path) -> Float[Tensor, "layer neuron"] | None:
        assert self.model.preprocess is not None
        with Image.open(file) as image:
            pixels = self.model.preprocess(image.convert("RGB"))[None]
        with self._logging() as logs:
            self.model.source(pixels)
        kept = {name: np.concatenate(arrays, axis=0) for name, arrays in logs.items()}
        neurons, resid = (torch.from_numpy(kept[name]) for name in ("neurons", "resid"))
        outliers = resid[self.detect_layer].norm(dim=-1) > self.threshold
        if not outliers.any():
            return None
        score = neurons[:, outliers].abs().mean(dim=1)
        if self.sparsity is not None:
            activation, share = self.sparsity
            score = score * ((neurons < activation).float().mean(dim=1) >= share)
        return score

    @contextmanager
    def _logging(self) -> Iterator[dict[str, list[np.ndarray]]]:
        """Hooks that copy what every layer gives to numpy arrays."""
        logs: dict[str, list[np.ndarray]] = {}
        blocks: Any = self.model.source.blocks
        with ExitStack() as stack:
            for block in blocks:
                modules = {"neurons": block.mlp.act, "resid": block}
                if self.keeps_attention:
                    modules["attention"] = block.attn.attn_drop
                    stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
                    block.attn.fused_attn = False
                for name, module in modules.items():
                    keep = partial(_keep, logs.setdefault(name, []))
                    stack.callback(module.register_forward_hook(keep).remove)
            yield logs


def _keep(arrays: list[np.ndarray], module: Any, inputs: tuple, output: Tensor) -> None:
    arrays.append(output.cpu().numpy())
