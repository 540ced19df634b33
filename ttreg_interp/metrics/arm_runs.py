"""Many arms on one batch: each starts at the block where it parts from one that has run."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import ContractError
from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.hooked.rows import AttentionRows
from ttreg_interp.interventions import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.value import Value


@dataclass(frozen=True)
class Observed:
    """Which layers of every run are looked at."""

    norms: frozenset[int] = frozenset()
    """Residual norms after these blocks."""
    attention: frozenset[int] = frozenset()
    """Attention rows of [CLS] in these blocks."""


@dataclass(frozen=True)
class ArmRun:
    """What one arm did with one batch."""

    output: Float[Tensor, "batch ..."]
    """What the model returned."""
    layout: TokenLayout
    """Which rows of the token axis are which, without added rows."""
    norms: Mapping[int, Float[Tensor, "batch token"]]
    """Residual norms after the observed blocks."""
    attention: Mapping[int, Float[Tensor, "batch head token"]]
    """Attention of [CLS] in the observed blocks (without [CLS]: the mean over patches as queries)."""

    def patch_norms(self, layer: int) -> Float[Tensor, "batch patch"]:
        """Residual norms of the patches after a block."""
        norms = self.norms[layer]
        return norms[:, self.layout.of_length(norms.shape[1]).patches]

    def register_attention(self, layer: int) -> Float[Tensor, "batch head"]:
        """Attention that all registers draw together, trained and test-time ones."""
        attention = self.attention[layer]
        patches = self.layout.of_length(attention.shape[2]).patches
        return attention[:, :, self.layout.n_cls : patches.start].sum(dim=2)


@dataclass(frozen=True)
class Step:
    """One arm of a plan."""

    name: str
    """The arm."""
    intervention: Intervention
    """What it does."""
    parent: str | None = None
    """The arm whose residual stream it goes on from; None: it starts from the pixels."""
    start: int = 0
    """The block where it parts from its parent: its first."""


class ArmRuns:
    """Runs arms on batches, every arm from the block where it parts from an earlier one.

    Two arms share a block if all their hooks up to it are the same functions of equal values. The
    results have the bits of arms that run alone.

    Args:
        model: any HookedViT.
        arms: in the order in which they run.
        observed: what to look at.
    """

    def __init__(self, model: HookedViT, arms: Mapping[str, Intervention], observed: Observed):
        self.model = model
        self.observed = observed
        self.steps = _plan(model, arms)

    @property
    def n_blocks_run(self) -> int:
        """Blocks that all arms together run on a batch."""
        n_layers = self.model.cfg.n_layers
        return sum(n_layers - step.start for step in self.steps)

    @torch.no_grad()
    def __call__(
        self, pixels: Float[Tensor, "batch channel height width"]
    ) -> Iterator[tuple[str, ArmRun]]:
        """Every arm's name and run, one after the other.

        Raises:
            ContractError: NaN or inf in an output.
        """
        runs: dict[str, ArmRun] = {}
        residuals: dict[tuple[str, int], Tensor] = {}
        for step in self.steps:
            run = self._run(step, pixels, residuals)
            if step.parent is not None:
                run = _completed(run, runs[step.parent], step.start)
            runs[step.name] = run
            yield step.name, run

    def _run(self, step: Step, pixels: Tensor, residuals: dict[tuple[str, int], Tensor]) -> ArmRun:
        model = self.model
        resumed = {}
        if step.parent is not None:
            resumed = {"start_at_layer": step.start, "image_size": tuple(pixels.shape[-2:])}
            entering = residuals[step.parent, step.start]
        else:
            entering = pixels
        # Hooks run in the order in which they are attached: a child wants what enters a block
        # before this arm edits it, an observer what leaves one after.
        with (
            model.hooks(fwd_hooks=[*self._kept(step, residuals)]),
            model.intervened(step.intervention),
        ):
            observer = _Observer(model, self.observed, model.layout(pixels.shape), step.start)
            with model.hooks(fwd_hooks=[*observer.hooks]):
                output = model(entering, **resumed)
        _check_finite(output, step)
        return observer.run(output)

    def _kept(self, step: Step, residuals: dict[tuple[str, int], Tensor]) -> list[NamedHook]:
        starts = {child.start for child in self.steps if child.parent == step.name}
        return [
            (f"blocks.{layer}.hook_resid_pre", partial(_keep, residuals, (step.name, layer)))
            for layer in starts
        ]


class _Observer:
    """Hooks that look at one run; built inside `model.intervened`, to see what is attached."""

    def __init__(self, model: HookedViT, observed: Observed, layout: TokenLayout, start: int):
        self.layout = layout
        self.norms: dict[int, Tensor] = {}
        self.n_tokens: dict[int, int] = {}
        queries = layout.cls if layout.n_cls else slice(0, None)
        self.rows = AttentionRows(model, queries, [at for at in observed.attention if at >= start])
        self.hooks: list[NamedHook] = [
            *self.rows.fwd_hooks(),
            *((f"blocks.{at}.hook_resid_post", partial(self._norm, at)) for at in observed.norms),
            *((f"blocks.{at}.hook_resid_mid", partial(self._count, at)) for at in self.rows.layers),
        ]

    def _norm(self, layer: int, resid: Tensor, hook: Any) -> None:
        self.norms[layer] = resid.float().norm(dim=-1)

    def _count(self, layer: int, resid: Tensor, hook: Any) -> None:
        self.n_tokens[layer] = resid.shape[1]

    def run(self, output: Tensor) -> ArmRun:
        """What was seen."""
        attention = {layer: self._attention(layer) for layer in self.rows.layers}
        return ArmRun(output, self.layout, self.norms, attention)

    def _attention(self, layer: int) -> Float[Tensor, "batch head token"]:
        rows, n_tokens = self.rows[layer], self.n_tokens[layer]
        if not self.layout.n_cls:
            rows = rows[:, :, self.layout.of_length(n_tokens).patches]
        # Keys in front of the tokens are an attention bias: no token.
        return rows.mean(dim=2)[..., rows.shape[-1] - n_tokens :]


def _keep(kept: dict, key: Hashable, activation: Tensor, hook: Any) -> None:
    kept[key] = activation


def _completed(run: ArmRun, parent: ArmRun, start: int) -> ArmRun:
    """A run with what its parent showed of the blocks that they share."""
    norms = {layer: seen for layer, seen in parent.norms.items() if layer < start}
    attention = {layer: seen for layer, seen in parent.attention.items() if layer < start}
    return replace(run, norms={**norms, **run.norms}, attention={**attention, **run.attention})


def _check_finite(output: Tensor, step: Step) -> None:
    if not torch.isfinite(output).all():
        raise ContractError(
            f"Arm {step.name!r} ({step.intervention}): NaN or inf in the output. "
            "`trace(model, pixels)` inside `model.intervened(...)` names the first such layer."
        )


# ---------------------------------------------------------------------- which blocks arms share


Program = list[list[NamedHook]]
"""Hooks of an intervention in the embedding, in every block, and behind the blocks."""


def _plan(model: HookedViT, arms: Mapping[str, Intervention]) -> list[Step]:
    """Every arm after the one with which it shares most; of several, the first."""
    programs: dict[str, Program] = {}
    steps = []
    for name, intervention in arms.items():
        program = _program(model, intervention)
        shared = {other: _n_shared(program, known) for other, known in programs.items()}
        parent = max(shared, key=lambda other: shared[other], default=None)
        programs[name] = program
        if parent is None or shared[parent] == 0:
            steps.append(Step(name, intervention))
        else:
            steps.append(Step(name, intervention, parent, shared[parent] - 1))
    return steps


def _program(model: HookedViT, intervention: Intervention) -> Program:
    n_layers = model.cfg.n_layers
    program: Program = [[] for _ in range(n_layers + 2)]
    for name, function in intervention.fwd_hooks(model):
        if name.startswith("blocks."):
            stage = int(name.split(".")[1]) + 1
        else:
            stage = 0 if name.startswith(("hook_embed", "ln_pre", "hook_full_embed")) else -1
        program[stage].append((name, function))
    return program


def _n_shared(one: Program, other: Program) -> int:
    """Stages before the first that differs; the last block and what is behind never count."""
    n_shared = 0
    for mine, theirs in zip(one[:-2], other[:-2], strict=True):
        if not _same(tuple(mine), tuple(theirs)):
            break
        n_shared += 1
    return n_shared


def _same(one: Any, other: Any) -> bool:
    """Whether two hooks do the same. What might hold state is the same as itself alone."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    match one:
        case partial():
            parts = ((hook.func, hook.args, tuple(hook.keywords.items())) for hook in (one, other))
            return _same(*parts)
        case MethodType():
            return one.__func__ is other.__func__ and _same(one.__self__, other.__self__)
        case tuple():
            return len(one) == len(other) and all(map(_same, one, other))
        case Tensor():
            alike = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
            return alike and torch.equal(one, other)
        case Value() | Frame() | slice() | bool() | int() | float() | str():
            return one == other
    return False
