"""What traced models of images and of texts have in common: hook points that nnsight feeds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ttreg_interp.backends.importing import import_nnsight
from ttreg_interp.backends.run import Run
from ttreg_interp.backends.sites import SiteMap
from ttreg_interp.errors import InterventionError, UnsupportedModelError
from ttreg_interp.hooked.blocks import HookedMLP
from ttreg_interp.hooked.intervened import SupportsHooks
from ttreg_interp.hooked.parts import Tokens
from ttreg_interp.hooked.root import HookedModel

Remote = bool | str
"""False: here; True: on NDIF; an address: on a server there."""


class Traced(HookedModel):
    """A hooked model whose blocks the model itself runs.

    Hook points for which the site map names no site are missing from `hook_dict`, and refused.
    """

    envoy: Any
    sites: SiteMap
    remote: Remote
    hook_embed: HookPoint
    hook_full_embed: HookPoint
    parts: Any

    def __init__(
        self, envoy: Any, source: nn.Module, parts: Any, sites: SiteMap, remote: Remote = False
    ):
        """Serve the hook points that have a site, and no others."""
        hooked: Any = super().__init__  # of HookedViT or HookedLM, which stand behind this class
        hooked(source, parts)
        self.__dict__["envoy"] = envoy  # beside the module tree, which has the source already
        self.sites, self.remote = sites, remote
        for layer, block in enumerate(self.blocks):
            block.mlp = _ReadMLP(block.mlp.parts)
            block.mlp.hook_post.name = f"blocks.{layer}.mlp.hook_post"
        self.hook_dict = self._served()
        self.mod_dict = {**self.hook_dict}
        self._open_sources()

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
        inside = self.sites.inside
        for layer in range(len(self.blocks)):
            for site in {*inside.hook_sites().values(), *(inside.before_turn or ())}:
                self._open(self.sites.block_path(layer), site)

    def _open(self, block: str, site: str) -> None:
        import_nnsight()
        from nnsight.intervention.source import SourceNotAvailable

        host = f"{block}.{site}".removesuffix(".input").removesuffix(".output")
        try:
            self.envoy.get(host)
        except (AttributeError, SourceNotAvailable) as error:
            raise UnsupportedModelError(
                f"The site map names {site!r} in {block}, which is not there ({error}). "
                "print(nnsight.NNsight(module).get(MODULE).source) lists the operations of a module; a class "
                "without source text has none."
            ) from None

    def rotary_table(self, cos: Tensor, sin: Tensor) -> Any:
        """What this model's own rotation takes, from the table that its modules hand on."""
        return cos, sin

    # ------------------------------------------------------------------ runs

    def _trace(
        self, run: Run, function: Callable[..., Any] | None, *args: Any, **named: Any
    ) -> Run:
        """Run `function` (None: the whole model), with `run` beside it.

        Raises:
            InterventionError: the forward does not pass a site, or in another order.
        """
        nnsight = import_nnsight()
        from nnsight.intervention.interleaver import OutOfOrderError

        how: dict[str, Any] = {"fn": "__call__" if function is None else function}
        if self.remote:
            how["remote"] = self.remote
        # torch's own fast path hides what happens inside nn.MultiheadAttention
        try:
            with _no_fast_path(), self.envoy.trace(*args, **how, **named) as tracer:
                done = nnsight.save(
                    run
                )  # before the run, which may end early; a server's comes back
                done.follow(tracer)
        except OutOfOrderError as error:
            raise InterventionError(
                f"{self.cfg.model_name} does not pass a site of its map, or in another order than the map "
                f"({error}). A fused kernel hides a pattern: choose the plain one, or leave the site out."
            ) from None
        return done

    def _stop(self, start_at_layer: int | None, stop_at_layer: int | None) -> int | None:
        """The block to stop before, counted from 0."""
        span = self._span(start_at_layer, stop_at_layer)
        return None if stop_at_layer is None else span.stop

    def _start(self, start_at_layer: int | None, residual: Any) -> tuple[int, Tensor] | None:
        """The block to start at, counted from 0, and what enters it."""
        if start_at_layer is None:
            return None
        return self._span(start_at_layer, None).start, residual

    # ------------------------------------------------------------------ hooks

    @contextmanager
    def hooks(self, fwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Iterator[Any]:
        """See HookedRootModule.

        Raises:
            InterventionError: a hook point for which the site map names no site; or any on a server,
                where what a hook keeps would stay.
        """
        if self.remote:
            raise InterventionError(
                f"remote={self.remote!r}: hooks would run on the server, and what they keep (a cache, "
                "norms) would stay there. Under `intervened` the outputs and stop_at_layer come back; "
                "for the rest run the model here."
            )
        self._check_served([name for name, _ in fwd_hooks if isinstance(name, str)], "A hook")
        with super().hooks(fwd_hooks, *args, **kwargs):
            yield self

    @contextmanager
    def intervened(self, *interventions: SupportsHooks) -> Iterator[Self]:
        """See HookedViT.

        Raises:
            InterventionError: also if it acts where the site map names no site.
        """
        for one in interventions:
            self._check_served([name for name, _ in one.fwd_hooks(self)], type(one).__name__)
        with self._sent(interventions) if self.remote else super().intervened(*interventions):
            yield self

    @contextmanager
    def _sent(self, interventions: Sequence[SupportsHooks]) -> Iterator[None]:
        """Interventions that travel with the trace. Nobody counts them here; nnsight raises if the model
        runs past a site."""
        already, active = len(self._interventions), self._interventions
        hooks = []
        try:
            for one in interventions:
                one.check_compatible(active)
                hooks += one.fwd_hooks(self)
                active.append(one)
            with super().hooks(fwd_hooks=hooks):
                yield
        finally:
            del active[already:]

    def _check_served(self, names: list[str], who: str) -> None:
        missing = next((name for name in names if name not in self.hook_dict), None)
        if missing is not None:
            served = sorted({name.split(".", 2)[-1] for name in self.hook_dict})
            raise InterventionError(
                f"{who} acts at {missing}, for which the site map of {self.cfg.model_name} names no "
                f"site. It serves, in every block: {', '.join(served)}. Add the site to the map, or "
                "run a HookedViT or HookedLM."
            )

    def __deepcopy__(self, memo: dict) -> Any:
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


def enveloped(model: Any, remote: Remote) -> tuple[Any, Any]:
    """An nnsight model and the module in it, from either.

    For a run here a module is traced by itself: an nnsight model of texts would prepare inputs of its own.
    If it was built without weights, it gets them first.

    Raises:
        UnsupportedModelError: nnsight is not installed.
    """
    try:
        nnsight = import_nnsight()
    except ImportError as error:
        raise UnsupportedModelError(
            f"nnsight cannot be imported ({error}). Install it: pip install 'ttreg-interp[nnsight]'."
        ) from None
    from nnsight.modeling.mixins.meta import Meta

    if isinstance(model, Meta) and not remote:
        model.dispatch()
    if isinstance(model, nnsight.Envoy) and not remote:
        model = model._module
    envoy = model if isinstance(model, nnsight.Envoy) else nnsight.NNsight(model)
    return envoy, envoy._module
