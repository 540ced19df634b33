"""What is kept of one arm: residual norms, attention by query, and the chosen neurons."""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.interventions import Intervention, NeuronSet
from ttreg_interp.metrics.trace import check_finite_layers
from ttreg_interp.report.codes import AttentionCode
from ttreg_interp.report.queries import QueryBlocks

MEAN_BUDGET, HEAD_BUDGET = 13_000_000, 3_000_000
"""Attention values, of all images and arms together, that are kept averaged over heads and by
head. 12 images of a 12-layer model with 198 tokens under two arms need 11.3 million to have every
patch as a query."""


@dataclass(frozen=True)
class Plan:
    """How the maps of one arm are laid out."""

    layout: TokenLayout
    """The token axis under this arm."""
    mean: QueryBlocks
    """Queries of the attention averaged over heads."""
    heads: QueryBlocks
    """Queries of the attention by head."""
    code: AttentionCode
    """How attention is stored."""

    @classmethod
    def within(
        cls,
        model: HookedViT,
        pixels_shape: torch.Size,
        intervention: Intervention,
        n_recorded: int,
    ) -> "Plan":
        """The finest plan that keeps `n_recorded` images (arms counted singly) in the budget."""
        layout = model.layout(pixels_shape)
        layout = layout.with_test_time_registers(intervention.n_added_tokens)
        n_patterns = n_recorded * model.cfg.n_layers
        return cls(
            layout=layout,
            mean=QueryBlocks.within(layout, n_patterns, MEAN_BUDGET),
            heads=QueryBlocks.within(layout, n_patterns * model.cfg.n_heads, HEAD_BUDGET),
            code=AttentionCode.for_keys(layout.n_tokens),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {
            "layout": asdict(self.layout),
            "block": {"mean": self.mean.side, "heads": self.heads.side},
            "attention": {"floor": self.code.floor, "relative_error": self.code.relative_error},
        }


@dataclass
class Observer:
    """Runs batches under an arm that is already in force, and keeps its maps on the CPU."""

    model: HookedViT
    """The model."""
    plan: Plan
    """How the maps are laid out."""
    neurons: NeuronSet
    """Which neurons are mapped."""
    _batches: list[dict[str, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def run(self, pixels: Float[Tensor, "batch channel height width"]) -> None:
        """One forward pass.

        Raises:
            ContractError: NaN or inf in the residual stream.
        """
        seen: dict[str, list[Tensor]] = {"norms": [], "pattern": [], "heads": [], "neurons": []}
        self.model.run_with_hooks(pixels, fwd_hooks=self._hooks(seen))
        check_finite_layers(torch.stack(seen["norms"]), self.model.cfg.model_name)
        if not len(self.neurons):
            seen.pop("neurons")
        self._batches.append({name: _by_image(name, maps) for name, maps in seen.items()})

    def maps(self) -> dict[str, Tensor]:
        """All batches; names and shapes as `Run.maps` has them."""
        return {
            name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]
        }

    def _hooks(self, seen: dict[str, list[Tensor]]) -> list[Any]:
        hooks = []
        for layer in range(self.model.cfg.n_layers):
            path = f"blocks.{layer}"
            hooks.append((f"{path}.attn.hook_pattern", partial(self._keep_pattern, seen)))
            hooks.append((f"{path}.hook_resid_post", partial(_keep_norms, seen)))
        for layer, neurons in self.neurons.layers:
            keep = partial(_keep_neurons, seen, torch.tensor(neurons))
            hooks.append((f"blocks.{layer}.mlp.hook_post", keep))
        return hooks

    def _keep_pattern(self, seen: dict[str, list[Tensor]], pattern: Tensor, hook: Any) -> None:
        # Keys in front of the tokens are an attention bias, which is no token.
        tokens = pattern[..., pattern.shape[-1] - pattern.shape[-2] :].float()
        mean = self.plan.mean.mean(tokens.mean(dim=1, keepdim=True))[:, 0]
        seen["pattern"].append(self.plan.code.encode(mean).cpu())
        seen["heads"].append(self.plan.code.encode(self.plan.heads.mean(tokens)).cpu())


def _keep_norms(seen: dict[str, list[Tensor]], resid: Tensor, hook: Any) -> None:
    seen["norms"].append(resid.float().norm(dim=-1).cpu())


def _keep_neurons(seen: dict[str, list[Tensor]], index: Tensor, post: Tensor, hook: Any) -> None:
    seen["neurons"].append(post[:, :, index.to(post.device)].float().cpu().transpose(1, 2))


def _by_image(name: str, maps: list[Tensor]) -> Tensor:
    """[batch, layer, ...]; neurons of all layers stand side by side, [batch, neuron, token]."""
    return torch.cat(maps, dim=1) if name == "neurons" else torch.stack(maps, dim=1)
