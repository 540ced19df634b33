"""What is kept of one arm: residual norms, attention rows, the chosen neurons, and the output."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import LayoutError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.metrics.trace import check_finite_layers
from ttreg_interp.report.plan import Plan
from ttreg_interp.report.sparsity import by_rank

Seen = dict[str, list[Tensor]]
"""By kind of map: one tensor a layer, batch first."""


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
            LayoutError: the arm deletes tokens.
        """
        seen: Seen = {}
        output = self.model.run_with_hooks(pixels, fwd_hooks=self._hooks(seen))
        check_finite_layers(torch.stack(seen["norms"]), self.model.cfg.model_name)
        by_image = {name: torch.stack(maps, dim=1) for name, maps in seen.items() if maps}
        self._batches.append(by_image | {"output": output.flatten(1).float().cpu()})

    def maps(self) -> dict[str, Tensor]:
        """All batches; names and shapes as `Run.maps` has them."""
        return {
            name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]
        }

    def _hooks(self, seen: Seen) -> list[Any]:
        hooks = []
        for layer in range(self.model.cfg.n_layers):
            path = f"blocks.{layer}"
            hooks.append((f"{path}.attn.hook_pattern", partial(self._keep_rows, seen)))
            hooks.append((f"{path}.hook_resid_post", partial(_keep_norms, seen)))
        for layer, neurons in self.neurons.layers:
            keep = partial(self._keep_neurons, seen, neurons)
            hooks.append((f"blocks.{layer}.mlp.hook_post", keep))
        return hooks

    def _keep_neurons(self, seen: Seen, neurons: tuple[int, ...], post: Tensor, hook: Any) -> None:
        seen.setdefault("neurons", []).extend(post[:, :, n].float().cpu() for n in neurons)
        patches = post[:, self.plan.layout.patches].float().transpose(1, 2)
        seen.setdefault("ordinary", []).append(by_rank(patches).mean(dim=1).cpu())

    def _keep_rows(self, seen: Seen, pattern: Tensor, hook: Any) -> None:
        n_queries, n_tokens = pattern.shape[2], self.plan.layout.n_tokens
        if n_queries != n_tokens:
            raise LayoutError(
                f"{hook.name} has {n_queries} queries where the layout has {n_tokens} tokens: an "
                "arm deletes tokens on the way, so its maps have no grid. Record MaskTokens, which "
                "hides the same tokens and keeps their rows."
            )
        for name, row_set in self.plan.rows.items():
            rows = row_set.read(pattern)
            rows = rows if row_set.by_head else rows[:, 0]
            kept = rows if name == "exact" else self.plan.code.encode(rows)
            seen.setdefault(name, []).append(kept.cpu())


def _keep_norms(seen: Seen, resid: Tensor, hook: Any) -> None:
    seen.setdefault("norms", []).append(resid.float().norm(dim=-1).cpu())
