"""What hooked models of images and of texts have in common."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import NamesFilter

from ttreg_interp.errors import LayoutError
from ttreg_interp.hooked.cache import ViTActivationCache
from ttreg_interp.hooked.intervened import SupportsHooks, intervened
from ttreg_interp.hooked.weights import WeightStacks


def _all_but_results(name: str) -> bool:
    return not name.endswith("hook_result")


class HookedModel(WeightStacks, HookedRootModule):
    """Blocks under hook points, and the interventions that they run under.

    Attributes:
        n_forwards: forward passes begun, by which hooks tell one from the next; compiled ones do not
            count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spec: str | None = None
        self.n_forwards = 0
        self._interventions: list[SupportsHooks] = []

    @abstractmethod
    def _layout_of_run(self, inputs: Any, n_tokens: int | None, **kwargs: Any) -> Any:
        """The layout of a forward pass over `inputs` whose residual stream had `n_tokens` rows."""

    def _blocks_config(self) -> dict[str, Any]:
        """What the blocks alone tell of `cfg`."""
        first = self.blocks[0]
        weight = first.mlp.parts.out.weight
        return {
            "model_name": self.spec or self._name,
            "n_layers": len(self.blocks),
            "d_model": weight.shape[0],
            "n_heads": first.attn.parts.n_heads,
            "d_head": first.attn.parts.d_head,
            "d_mlp": weight.shape[1],
            "gated_mlp": first.mlp.parts.gate_weights is not None,
            "normalization_type": "LN" if first.ln1.centred else "RMS",
            "device": weight.device,
            "dtype": weight.dtype,
        }

    def _begin_forward(self) -> None:
        """What every forward pass does first.

        `torch.compile` has no guards on hooks of its own
        (`torch._dynamo.config.skip_nnmodule_hook_guards`): it is made to look at every hook point, or
        it would silently go on without hooks that come later.
        """
        if torch.compiler.is_dynamo_compiling():
            for point in self.hook_dict.values():
                point.has_hooks()
        elif not torch.compiler.is_compiling():  # a count would be compiled again at every step
            self.n_forwards += 1

    def _span(self, start_at_layer: int | None, stop_at_layer: int | None) -> slice:
        """The blocks that a forward pass runs through."""
        n_layers = len(self.blocks)
        start = 0 if start_at_layer is None else start_at_layer
        stop = n_layers if stop_at_layer is None else stop_at_layer
        for argument, layer in (("start_at_layer", start), ("stop_at_layer", stop)):
            if not -n_layers <= layer <= n_layers:
                raise LayoutError(
                    f"{argument}={layer}: this model has {n_layers} blocks, so "
                    f"{-n_layers} to {n_layers} are possible."
                )
        span = slice(*(layer + n_layers if layer < 0 else layer for layer in (start, stop)))
        if span.start > span.stop:
            raise LayoutError(
                f"start_at_layer={start_at_layer} lies behind stop_at_layer={stop_at_layer}."
            )
        return span

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take hooks away where there are some: to do so everywhere costs as much as hooking all."""
        for point in self.hook_points():
            if point.fwd_hooks and direction != "bwd":
                point.remove_hooks("fwd", including_permanent, level)
            if point.bwd_hooks and direction != "fwd":
                point.remove_hooks("bwd", including_permanent, level)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The output and a ViTActivationCache (a plain dict if `return_cache_object` is False).

        Arguments are those of `HookedRootModule.run_with_cache`; those of `forward` go to the
        forward. The cache's `layout` tells its token rows, test-time registers included.

        Without a `names_filter` everything is cached but `hook_result`: what single heads write is
        `hook_z` times `W_O`, in as many numbers as there are heads for every one of the residual
        stream. The cache computes it when its methods need it; asked for by name, it is cached.
        """
        wanted = _all_but_results if names_filter is None else names_filter
        first = min(self._span(kwargs.get("start_at_layer"), None).start, len(self.blocks) - 1)
        n_tokens: list[int] = []
        count = (
            f"blocks.{first}.hook_resid_pre",
            lambda resid, hook: n_tokens.append(resid.shape[1]),
        )
        with self.hooks(fwd_hooks=[count]):
            output, cache = super().run_with_cache(
                *model_args, names_filter=wanted, remove_batch_dim=remove_batch_dim, **kwargs
            )
        if not return_cache_object:
            return output, cache
        layout = self._layout_of_run(model_args[0], n_tokens[0] if n_tokens else None, **kwargs)
        return output, ViTActivationCache(cache, self, layout, has_batch_dim=not remove_batch_dim)

    @contextmanager
    def intervened(self, *interventions: SupportsHooks) -> Iterator[Self]:
        """Every forward inside runs under the interventions, composed in order.

        Raises:
            InterventionError: one conflicts with another or does not fit the model (on entry);
                one did not fire although a forward reached its layer (on exit).
        """
        with intervened(self, self._interventions, interventions):
            yield self

    @property
    def n_added_tokens(self) -> int:
        """Rows that the interventions of the surrounding `intervened` contexts add."""
        return sum(intervention.n_added_tokens for intervention in self._interventions)
