"""Interventions through nnsight: on any module, with no forward of our own, here or on a server.

HookedViT runs a forward that we wrote over a model's modules. TracedViT runs the model's own
forward, wherever that stands (in a vision-language model, spread over several devices), and nnsight
hands what passes its sites to the same hook points. What takes a HookedViT takes a TracedViT:
interventions, `run_with_cache`, discovery, metrics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from ttreg_interp.backends.run import Run
from ttreg_interp.backends.shape import TowerShape, parts_from
from ttreg_interp.backends.sites import SiteMap, sites_of
from ttreg_interp.errors import InterventionError, LayoutError, UnsupportedModelError
from ttreg_interp.hooked.blocks import HookedMLP
from ttreg_interp.hooked.cache import ViTActivationCache
from ttreg_interp.hooked.intervened import SupportsHooks
from ttreg_interp.hooked.parts import Tokens, ViTParts
from ttreg_interp.hooked.sources import default_preprocess, parts_of
from ttreg_interp.hooked.vit import HookedViT, ReturnType


class TracedViT(HookedViT):
    """A vision transformer whose own forward runs, with nnsight at its sites.

    Hook points for which the site map names no site are missing from `hook_dict`, and refused.

    Attributes:
        envoy: the nnsight model, of the whole module that was given.
        sites: where the hook points stand.

    Example:
        >>> import timm, torch
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> model = TracedViT.trace(timm.create_model("test_vit").eval())
        >>> with model.intervened(TestTimeRegister({2: [5]})):
        ...     logits, cache = model.run_with_cache(torch.zeros(1, 3, 160, 160))
        >>> cache["blocks.3.hook_resid_post"].shape  # one row more
        torch.Size([1, 102, 64])
    """

    envoy: Any

    def __init__(self, envoy: Any, source: nn.Module, parts: ViTParts, sites: SiteMap):
        super().__init__(source, parts)
        self.__dict__["envoy"] = envoy  # beside the module tree, which has the source already
        self.sites = sites
        for layer, block in enumerate(self.blocks):
            block.mlp = _ReadMLP(block.mlp.parts)
            block.mlp.hook_post.name = f"blocks.{layer}.mlp.hook_post"
        self.hook_dict = self._served()
        self.mod_dict = {**self.hook_dict}
        self._open_sources()

    @classmethod
    def trace(
        cls, model: Any, sites: SiteMap | None = None, shape: TowerShape | None = None
    ) -> "TracedViT":
        """A model in hand, under nnsight.

        Args:
            model: a module, or an nnsight model of one; a vision transformer, or a model that holds
                one.
            sites: where its parts are; None where a source file knows the vision transformer.
            shape: its sizes; with `sites`, and only then.

        Raises:
            UnsupportedModelError: no source file knows it and no sites were given, or the sites do
                not fit.
        """
        import nnsight

        envoy = model if isinstance(model, nnsight.Envoy) else nnsight.NNsight(model)
        whole = envoy._module
        if (sites is None) != (shape is None):
            raise UnsupportedModelError(
                "A site map says where parts are, a TowerShape how large they are: give both, or "
                "neither for a family that has a source file."
            )
        if sites is None or shape is None:
            source, parts = parts_of(whole)
            traced = cls(envoy, source, parts, sites_of(whole, source, parts))
            traced.preprocess = default_preprocess(source, parts.image_size)
            return traced
        source = whole.get_submodule(sites.tower)
        return cls(envoy, source, parts_from(source, sites, shape), sites)

    def _served(self) -> dict[str, HookPoint]:
        """The hook points that have a site, by name."""
        served = {"hook_embed": self.hook_embed, "hook_full_embed": self.hook_full_embed}
        for block in self.blocks:
            for name in self.sites.inside.hook_sites():
                point: Any = block.get_submodule(name)
                served[str(point.name)] = point
        return served

    def _open_sources(self) -> None:
        """Let nnsight see the operations that sites name: too late once their module runs."""
        for layer in range(len(self.blocks)):
            for site in set(self.sites.inside.hook_sites().values()):
                module, source, _ = f"{self.sites.block_path(layer)}.{site}".partition(".source.")
                if source:
                    _ = self.envoy.get(module).source

    @staticmethod
    def rotary_table(cos: Tensor, sin: Tensor) -> Any:
        """What this model's own rotation takes, from the table that its modules hand on."""
        return cos, sin

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixels: Tensor | None = None,
        return_type: ReturnType = "output",
        stop_at_layer: int | None = None,
        *,
        start_at_layer: int | None = None,
        image_size: tuple[int, int] | None = None,
        **inputs: Any,
    ) -> Any:
        """What HookedViT returns; or, with named inputs, what the whole model returns.

        Args:
            pixels: preprocessed images, for the vision transformer alone.
            return_type: see HookedViT.
            stop_at_layer: see HookedViT.
            start_at_layer: refused: a trace runs the model from its beginning.
            image_size: refused, as it goes with `start_at_layer`.
            **inputs: for the whole model, e.g. `input_ids` and `pixel_values`.

        Raises:
            LayoutError: an image size that the model does not take, a layer that it does not have,
                pixels beside named inputs, or `start_at_layer`.
        """
        if start_at_layer is not None or image_size is not None:
            raise LayoutError(
                "A trace runs the model's own forward from its beginning: start_at_layer and image_size "
                "belong to HookedViT."
            )
        if (pixels is None) == (not inputs):
            raise LayoutError(
                "Give pixels, to run the vision transformer alone, or named inputs of the whole model "
                f"such as pixel_values=...; found both or neither ({sorted(inputs)})."
            )
        stop = None if stop_at_layer is None else self._span(None, stop_at_layer).stop
        run = Run(self, stop, cut_outputs=pixels is None)
        layout = self.layout() if pixels is None else self.layout(pixels.shape)
        self._trace(run, pixels, inputs)
        if stop is not None:
            return run.residual
        if return_type == "output":
            return run.result
        assert run.residual is not None
        tokens = self._read(run.residual, layout, "tokens")
        return tokens if return_type == "tokens" else (run.result, tokens)

    def _trace(self, run: Run, pixels: Tensor | None, inputs: dict[str, Any]) -> None:
        """Run the model with `run` beside it."""
        args = () if pixels is None else (pixels,)
        function = "__call__" if pixels is None else self.parts.reference
        # torch's own fast path hides what happens inside nn.MultiheadAttention
        with _no_fast_path(), self.envoy.trace(*args, fn=function, **inputs) as tracer:
            run.follow(tracer)

    # ------------------------------------------------------------------ hooks

    def run_with_cache(self, *model_args: Any, **kwargs: Any) -> Any:
        """See HookedViT; with named inputs, of a run of the whole model.

        The layout of such a cache is that of the model's own image size.
        """
        if model_args:
            return super().run_with_cache(*model_args, **kwargs)
        output, cache = HookedRootModule.run_with_cache(self, return_cache_object=False, **kwargs)
        layout = self.layout().with_test_time_registers(self.n_added_tokens)
        return output, ViTActivationCache(dict(cache), self, layout)

    @contextmanager
    def hooks(self, fwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Iterator[Any]:
        """See HookedRootModule.

        Raises:
            InterventionError: a hook point for which the site map names no site.
        """
        self._check_served([name for name, _ in fwd_hooks if isinstance(name, str)], "A hook")
        with super().hooks(fwd_hooks, *args, **kwargs):
            yield self

    @contextmanager
    def intervened(self, *interventions: SupportsHooks) -> Iterator["TracedViT"]:
        """See HookedViT.

        Raises:
            InterventionError: also if it acts where the site map names no site.
        """
        for one in interventions:
            names = [name for name, _ in one.fwd_hooks(self)]
            self._check_served(names, type(one).__name__)
        with super().intervened(*interventions):
            yield self

    def _check_served(self, names: list[str], who: str) -> None:
        missing = next((name for name in names if name not in self.hook_dict), None)
        if missing is not None:
            served = sorted({name.split(".", 2)[-1] for name in self.hook_dict})
            raise InterventionError(
                f"{who} acts at {missing}, for which the site map of {self._name} names no site. It "
                f"serves, in every block: {', '.join(served)}. Add the site to the map, or run a "
                "HookedViT."
            )

    def __deepcopy__(self, memo: dict) -> "TracedViT":
        raise UnsupportedModelError(
            "A traced model is not copied: nnsight is bound to its modules. Copy the module and "
            "trace the copy."
        )


class _ReadMLP(HookedMLP):
    """The MLP of a block that the model runs itself: it only lets others see what that reads."""

    def forward(self, x: Tokens) -> Tokens:
        return x


@contextmanager
def _no_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
