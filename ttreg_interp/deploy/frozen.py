"""A hooked model whose hook points are replaced by what an intervention does there."""

from collections import defaultdict

from jaxtyping import Shaped
from torch import Tensor, nn

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.intervened import HookFunction
from ttreg_interp.interventions import Intervention


class FixedPoint(nn.Module):
    """Stands where a hook point stood: always applies its edits, and takes no hooks."""

    def __init__(self, name: str, edits: tuple[HookFunction, ...] = ()):
        super().__init__()
        self.name = name
        self.edits = edits

    def has_hooks(self) -> bool:
        """Whether it edits; attention stays fused where nothing edits its scores or pattern."""
        return bool(self.edits)

    def forward(self, activation: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The activation after every edit, in order."""
        for edit in self.edits:
            edited = edit(activation, hook=self)
            activation = activation if edited is None else edited
        return activation


def freeze(model: HookedViT, intervention: Intervention) -> HookedViT:
    """`model` itself, which from now on always runs under the intervention, and takes no hooks.

    Its forward is the one that hooks would have edited, so the two agree bit for bit.

    Args:
        model: nobody else's: it is changed.
        intervention: what to do.

    Raises:
        InterventionError: it does not fit the model.
    """
    edits: defaultdict[str, list[HookFunction]] = defaultdict(list)
    for name, function in intervention.fwd_hooks(model):
        edits[name].append(function)
    missing = sorted(edits.keys() - model.hook_dict.keys())
    if missing:
        raise InterventionError(
            f"{model.cfg.model_name} has no hook point {missing[0]}, where {intervention} would "
            "act. model.hook_dict lists those it has."
        )
    for name in model.hook_dict:
        model.set_submodule(name, FixedPoint(name, tuple(edits[name])))
    model.hook_dict = {}
    model.fast_cpu = None  # deployed elsewhere: torch's own kernels
    model._interventions.append(intervention)  # its edits count the rows that it adds
    return model
