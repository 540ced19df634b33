"""One traced forward pass: from site to site, in the order in which the model reaches them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformer_lens.hook_points import HookPoint

from ttreg_interp.backends.attention import CONVENTIONS, Points, attend, reweigh, spread
from ttreg_interp.backends.sites import ATTENTION_POINTS, TURNED, BlockSites
from ttreg_interp.errors import LayoutError
from ttreg_interp.hooked.blocks import HookedAttention, HookedBlock


@dataclass
class Run:
    """What the body of a trace does; made for one forward pass.

    Rows that hooks add enter where the first block begins and leave behind the last one, so that
    the model's own readers never see them.
    """

    model: Any
    """The TracedViT, whose hook points are served."""
    stop_at_layer: int | None
    """Stop before this block, counted from 0; None: run to the end."""
    cut_outputs: bool
    """Whether what the tower returns may hold rows of earlier blocks (`hidden_states`)."""
    start: tuple[int, Tensor] | None = None
    """A block, and the residual stream before it: the blocks before are skipped."""
    residual: Tensor | None = None
    """The residual stream where the run stopped, or what the final norm reads."""
    result: Any = None
    """What the model returned."""
    n_added: int = 0
    """Rows that hooks added."""

    def follow(self, tracer: Any) -> None:
        """Serve every hook point that has hooks, and keep what the model returns."""
        blocks = self.model.blocks
        n_tokens = self._enter() if self.start is None else self._skip(*self.start)
        first = 0 if self.start is None else self.start[0]
        for layer in range(
            first, len(blocks) if self.stop_at_layer is None else self.stop_at_layer
        ):
            self._block(self.model.sites.block_path(layer), blocks[layer])
        self.residual = self._last(n_tokens)
        if self.stop_at_layer is not None:
            tracer.stop()
        if self.cut_outputs and self.n_added:
            self._cut_outputs(n_tokens + self.n_added)
        self.result = tracer.result

    def _enter(self) -> int:
        """Rows of the model itself."""
        embed, full_embed = self.model.sites.entrance()
        n_tokens = self._n_tokens(embed)
        self._serve(embed, self.model.hook_embed)
        tokens = self._serve(full_embed, self.model.hook_full_embed, always=True)
        assert tokens is not None
        self.n_added = tokens.shape[1] - n_tokens
        return n_tokens

    def _skip(self, layer: int, residual: Tensor) -> int:
        """Go on from a residual stream; rows that the model itself would have."""
        embed, full_embed = self.model.sites.entrance()
        n_tokens = self._n_tokens(embed)
        self.n_added = residual.shape[1] - n_tokens
        for skipped in range(layer):
            self._host(self.model.sites.block_path(skipped)).skip(residual)
        if layer == 0:
            self._change(full_embed, lambda tokens: residual)
        return n_tokens

    def _n_tokens(self, embed: str) -> int:
        """Rows that the model itself lets enter."""
        shape = self._change(embed, lambda tokens: tokens).shape
        if len(shape) != 3:
            raise LayoutError(
                f"What enters {self.model.sites.block_path(0)} has shape {tuple(shape)}; hook points "
                "take [batch, token, d_model]. Towers that pack all images into one sequence "
                "(Qwen2-VL) are not covered."
            )
        return shape[1]

    def _block(self, path: str, block: HookedBlock) -> None:
        inside: BlockSites = self.model.sites.inside
        self._serve(f"{path}.input", block.hook_resid_pre)
        self._attention(path, inside, block.attn)
        self._serve(f"{path}.{inside.attn_contribution}", block.hook_attn_out)
        self._serve(f"{path}.{inside.resid_mid}", block.hook_resid_mid)
        if block.mlp._forward_pre_hooks:  # somebody reads what the MLP reads
            self._change(f"{path}.{inside.ln2}.output", block.mlp)
        self._serve(f"{path}.{inside.mlp_out}.input", block.mlp.hook_post)
        self._serve(f"{path}.{inside.mlp_contribution}", block.hook_mlp_out)
        self._serve(f"{path}.output", block.hook_resid_post)

    def _attention(self, path: str, inside: BlockSites, attn: HookedAttention) -> None:
        points = attention_points(attn)
        z = points.pop("hook_z") if inside.z is not None else None
        # then the model's own masks are too short, or its turn counts rows from the front
        longer = self.n_added > 0 and (attn.parts.causal or inside.before_turn is not None)
        turned = self._turned(path, inside, attn, longer) if inside.rotation else None
        if longer or turned is not None or any(point.has_hooks() for point in points.values()):
            if inside.attention is None:
                self._change(f"{path}.{inside.pattern}", lambda p: reweigh(p, points))
            else:
                self._attend(f"{path}.{inside.attention}", attn, points, turned)
        if z is not None and z.has_hooks():
            shape = (attn.parts.n_heads, attn.parts.d_head)
            self._change(f"{path}.{inside.z}", lambda flat: z(flat.unflatten(-1, shape)).flatten(2))

    def _turned(
        self, path: str, inside: BlockSites, attn: HookedAttention, longer: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Queries and keys turned here instead: if somebody hooks them before the turn, or if there are
        more rows than the model has positions for."""
        if not (longer or attn.hook_q.has_hooks() or attn.hook_k.has_hooks()):
            return None
        operations = [self._host(f"{path}.{operation}") for operation in inside.turning()]
        if inside.before_turn is None:
            (q_given, k_given, cos, sin, *_), _ = operations[0].inputs
            table, as_given = self.model.rotary_table(cos, sin), (q_given, k_given)
        else:
            q_given, k_given = (
                self._change(f"{path}.{site}", lambda x: x) for site in inside.before_turn
            )
            (as_given, table, *_), _ = operations[0].inputs
        assert attn.parts.rotate is not None
        with self._aside():
            q = attn.hook_q(q_given.transpose(1, 2))
            k = attn.hook_k(spread(k_given.transpose(1, 2), attn.parts))
            turned = attn.parts.rotate(q.transpose(1, 2), k.transpose(1, 2), table)
        if longer:
            operations[0].skip(as_given)
            for operation in operations[1:]:
                operation.skip(operation.inputs[0][0])
        return turned[0].transpose(1, 2), turned[1].transpose(1, 2)

    def _attend(
        self,
        path: str,
        attn: HookedAttention,
        points: Points,
        turned: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Attention through hook points, in place of the model's own call."""
        operation, convention = self._host(path), CONVENTIONS[self.model.sites.inside.call]
        inputs = operation.inputs
        with self._aside():
            given = convention.call(inputs, attn.parts)
            if turned is not None:
                given = replace(given, q=turned[0], k=turned[1])
            returned = convention.returned(attend(given, points), attn.parts)
        operation.skip(returned)

    def _last(self, n_tokens: int) -> Tensor:
        """The residual stream where the run ends; added rows leave if the model goes on."""
        stop, sites = self.stop_at_layer, self.model.sites
        if stop == 0:
            return self._change(sites.entrance()[1], lambda tokens: tokens)
        cut = self._cut if stop is None and self.n_added else lambda tokens: tokens
        return self._change(f"{sites.block_path((stop or len(self.model.blocks)) - 1)}.output", cut)

    def _cut(self, tokens: Tensor) -> Tensor:
        """`tokens` without the added rows, which stand behind the model's own prefix."""
        start = self.model.layout().n_prefix
        return torch.cat((tokens[:, :start], tokens[:, start + self.n_added :]), dim=1)

    def _cut_outputs(self, n_rows: int) -> None:
        """The tower's outputs without the added rows, which hidden states of earlier blocks hold."""

        def cut(tensor: Tensor) -> Tensor:
            return self._cut(tensor) if tensor.ndim == 3 and tensor.shape[1] == n_rows else tensor

        tower = self._host(self.model.sites.tower)
        tower.output = tree_map_only(Tensor, cut, tower.output)

    # ------------------------------------------------------------------ nnsight

    def _host(self, path: str) -> Any:
        """The module or operation at a path."""
        return self.model.envoy.get(path) if path else self.model.envoy

    def _serve(self, site: str, point: HookPoint, always: bool = False) -> Tensor | None:
        """Pass what stands at a site through a hook point, if that has hooks."""
        return self._change(site, point) if always or point.has_hooks() else None

    def _change(self, site: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Put `function` of what stands at a site there, and return it."""
        path, _, end = site.rpartition(".")
        host = self._host(path)
        value = getattr(host, end)
        tensor, rest = (value[0], value[1:]) if isinstance(value, tuple) else (value, None)
        with self._aside():
            new = function(tensor)
        if new is not tensor:
            setattr(host, end, new if rest is None else (new, *rest))
        return new

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Hooks may call the model's own modules; nnsight must not take that for the forward."""
        interleaver = self.model.envoy.interleaver
        before, interleaver.interleaving = interleaver.interleaving, False
        try:
            yield
        finally:
            interleaver.interleaving = before


def attention_points(attn: HookedAttention) -> dict[str, HookPoint]:
    """The hook points of attention; where it rotates, its call gets queries and keys turned."""
    names = TURNED if attn.parts.rotate else {}
    return {name: getattr(attn, names.get(name, name)) for name in ATTENTION_POINTS}
