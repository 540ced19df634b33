"""Interventions through nnsight: on any module, with no forward of our own, here or on a server.

HookedViT and HookedLM run a forward that we wrote over a model's modules. TracedViT and TracedLM run
the model's own forward, wherever that stands (in a vision-language model, spread over several
devices), and nnsight hands what passes its sites to the same hook points. What takes a hooked model
takes a traced one: interventions, `run_with_cache`, discovery, metrics.
"""

from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from ttreg_interp.backends.run import Run
from ttreg_interp.backends.shape import TowerShape, parts_from
from ttreg_interp.backends.sites import SiteMap, sites_of
from ttreg_interp.backends.traced import Remote, Traced, enveloped
from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.hooked.cache import ViTActivationCache
from ttreg_interp.hooked.language import HookedLM, ReturnType, Tokenizer
from ttreg_interp.hooked.language_parts import RotaryTable
from ttreg_interp.hooked.sources import default_preprocess, parts_of
from ttreg_interp.hooked.vit import HookedViT


class TracedViT(Traced, HookedViT):
    """A vision transformer whose own forward runs, with nnsight at its sites.

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

    @classmethod
    def trace(
        cls,
        model: Any,
        sites: SiteMap | None = None,
        shape: TowerShape | None = None,
        *,
        remote: Remote = False,
    ) -> "TracedViT":
        """A model in hand, under nnsight.

        Args:
            model: a module, or an nnsight model of one; a vision transformer, or a model that holds
                one.
            sites: where its parts are; None where a source file knows the vision transformer.
            shape: its sizes; with `sites`, and only then.
            remote: handed to nnsight's `trace`: True runs on NDIF, a host's address there.

        Raises:
            UnsupportedModelError: no source file knows it and no sites were given, or the sites do
                not fit.
        """
        envoy, whole = enveloped(model, remote)
        if (sites is None) != (shape is None):
            raise UnsupportedModelError(
                "A site map says where parts are, a TowerShape how large they are: give both, or "
                "neither for a family that has a source file."
            )
        if sites is None or shape is None:
            source, parts = parts_of(whole)
            traced = cls(envoy, source, parts, sites_of(whole, source, parts), remote)
            traced.preprocess = default_preprocess(source, parts.image_size)
            return traced
        source = whole.get_submodule(sites.tower)
        return cls(envoy, source, parts_from(source, sites, shape), sites, remote)

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
            pixels: preprocessed images, for the vision transformer alone; with `start_at_layer`, what
                `stop_at_layer` returned.
            return_type: see HookedViT.
            stop_at_layer: see HookedViT.
            start_at_layer: go on from the residual stream before this block; the blocks before are
                skipped, and the embedding runs on a blank image.
            image_size: see HookedViT.
            **inputs: for the whole model, e.g. `input_ids` and `pixel_values`.

        Raises:
            LayoutError: an image size that the model does not take, a layer that it does not have,
                or pixels beside named inputs, or none of them.
        """
        self._begin_forward()
        if (pixels is None) == (not inputs):
            raise LayoutError(
                "Give pixels, to run the vision transformer alone, or named inputs of the whole model "
                f"such as pixel_values=...; found both or neither ({sorted(inputs)})."
            )
        stop = self._stop(start_at_layer, stop_at_layer)
        if pixels is None:
            layout = self.layout()
            run = self._trace(Run(self, stop, cut_outputs=True), None, **inputs)
        else:
            shape = self._pixels_shape(pixels, start_at_layer, image_size)
            layout, start = self.layout(shape), self._start(start_at_layer, pixels)
            seen = pixels if start is None else pixels.new_zeros(shape)
            run = Run(self, stop, cut_outputs=False, start=start)
            run = self._trace(run, self.parts.reference, seen)
        if stop is not None:
            return run.residual
        if return_type == "output":
            return run.result
        assert run.residual is not None
        tokens = self._read(run.residual, layout, "tokens")
        return tokens if return_type == "tokens" else (run.result, tokens)

    def run_with_cache(self, *model_args: Any, **kwargs: Any) -> Any:
        """See HookedViT; with named inputs, of a run of the whole model.

        The layout of such a cache is that of the model's own image size.
        """
        if model_args:
            return super().run_with_cache(*model_args, **kwargs)
        output, cache = HookedRootModule.run_with_cache(self, return_cache_object=False, **kwargs)
        layout = self.layout().with_test_time_registers(self.n_added_tokens)
        return output, ViTActivationCache(dict(cache), self, layout)


class TracedLM(Traced, HookedLM):
    """A causal language model whose own forward runs, with nnsight at its sites.

    Rows that interventions add stand in front and take no position, as in HookedLM.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> config = LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2,
        ...     num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
        >>> model = TracedLM.trace(LlamaForCausalLM(config).eval())
        >>> with model.intervened(TestTimeRegister({0: [5]}, fill="same")):
        ...     logits = model(torch.tensor([[1, 2, 3]]))
        >>> logits.shape
        torch.Size([1, 3, 50])
    """

    @classmethod
    def trace(
        cls, model: Any, tokenizer: Tokenizer | None = None, *, remote: Remote = False
    ) -> "TracedLM":
        """A language model in hand, under nnsight.

        Args:
            model: a causal language model of a family that HookedLM knows, or an nnsight model of one.
            tokenizer: its tokenizer; without one the model takes token ids only.
            remote: handed to nnsight's `trace`: True runs on NDIF, a host's address there.

        Raises:
            UnsupportedModelError: another class; names the families.
        """
        from ttreg_interp.hooked.sources.causal_lm import parts

        envoy, whole = enveloped(model, remote)
        read = parts(whole)
        traced = cls(envoy, whole, read, sites_of(whole, whole, read), remote)
        traced.tokenizer = tokenizer
        return traced

    def forward(
        self,
        inputs: Any,
        return_type: ReturnType = "output",
        stop_at_layer: int | None = None,
        *,
        start_at_layer: int | None = None,
    ) -> Any:
        """See HookedLM.

        Raises:
            LayoutError: more tokens than the model takes, or a layer that it does not have.
        """
        self._begin_forward()
        stop, start = self._stop(start_at_layer, stop_at_layer), self._start(start_at_layer, inputs)
        if start is None:
            ids = self._ids(inputs)
        else:
            n_given = inputs.shape[1] - self.n_added_tokens
            ids = torch.zeros(len(inputs), n_given, dtype=torch.long, device=inputs.device)
        n_given = self.layout(ids.shape).n_given
        run = Run(self, stop, cut_outputs=False, start=start)
        dry: dict[str, Any] = {}
        if ids.is_meta:  # transformers makes masks of values, which `meta` has not
            mask = torch.zeros(len(ids), 1, *2 * ids.shape[1:], device="meta", dtype=self.cfg.dtype)
            dry["attention_mask"] = mask
        run = self._trace(run, None, ids, use_cache=False, **dry)
        if stop is not None:
            return run.residual
        if return_type == "output":
            return run.result.logits
        assert run.residual is not None
        tokens = self._read(run.residual, n_given, "tokens")
        return tokens if return_type == "tokens" else (run.result.logits, tokens)

    def rotary_table(self, cos: Tensor, sin: Tensor) -> RotaryTable:
        """See Traced."""
        return RotaryTable(cos, sin)
