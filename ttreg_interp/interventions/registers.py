"""The test-time register, and its control: an added token that nothing is moved to."""

from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import AttentionMask, hide_keys, weigh_keys
from ttreg_interp.interventions.neuron_set import Neurons, NeuronSet
from ttreg_interp.interventions.neurons import deviation
from ttreg_interp.interventions.selector import chosen
from ttreg_interp.interventions.value import check_choice

Semantics = Literal["paper", "reference"]
Init = Literal["zero", "zero_before_ln_pre", "patch_mean", "patch_gaussian"]
Fill = Literal["zero", "mean", "only_outliers", "same"]
Assign = Literal["split", "same", "outlier_rank"]
Search = Literal["all", "patches", "bos"]


@dataclass(frozen=True, repr=False)
class ExtraTokens(Intervention):
    """Adds untrained tokens and moves nothing to them: the control for a test-time register.

    A token of zeros is not inert: it takes exp(0) of softmax mass in every head that has no
    stronger key (2506.08010's code adds it before `ln_pre`, so that it starts as that norm's bias).

    Raises:
        InterventionError: n_tokens < 1, copies <= 0, or a visible_from_layer that the model does not have.

    Example:
        >>> ExtraTokens(2)
        <ExtraTokens: 2 tokens added, zero after ln_pre>
    """

    n_tokens: int = 1
    """How many."""
    init: Init = "zero"
    """What they start from where they enter block 0: zero; `zero_before_ln_pre`: the norm of zero;
    `patch_mean`: the image's mean patch; `patch_gaussian`: normal, with the image's patch
    statistics per dimension (arXiv 2506.08010, Table 10)."""
    visible_from_layer: int = 0
    """Before this layer no token attends to them."""
    copies: float = 1.0
    """As how many keys each counts: log(copies) is added to its attention logits."""
    seed: int = 0
    """Of the Gaussian start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tokens < 1 or self.copies <= 0 or self.visible_from_layer < 0:
            raise InterventionError(
                f"n_tokens must be >= 1, copies > 0 and visible_from_layer >= 0; found "
                f"{self.n_tokens}, {self.copies}, {self.visible_from_layer}."
            )
        check_choice("init", self.init, Init)

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds."""
        return self.n_tokens

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return self.init in ("patch_mean", "patch_gaussian")

    def describe(self) -> str:
        """What it does, in words."""
        count = f"{self.n_tokens} token{'s' * (self.n_tokens > 1)} added"
        start = {"zero": "zero after ln_pre", "zero_before_ln_pre": "zero before ln_pre"}
        hidden = (
            f", hidden before layer {self.visible_from_layer}" if self.visible_from_layer else ""
        )
        weight = f", each counting as {self.copies:g} keys" if self.copies != 1 else ""
        return f"{count}, {start.get(self.init, self.init.replace('_', ' '))}{hidden}{weight}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        if self.visible_from_layer > frame.n_layers:
            raise InterventionError(
                f"visible_from_layer={self.visible_from_layer}: {frame.name} has {frame.n_layers} "
                f"blocks, so 0 to {frame.n_layers} are possible."
            )
        rows = slice(frame.first_row, frame.first_row + self.n_tokens)
        hooks: list[NamedHook] = [("hook_full_embed", partial(self._add, frame.model, rows))]
        for layer in range(frame.n_layers):
            name = f"blocks.{layer}.attn.hook_mask"
            if layer < self.visible_from_layer:
                hooks.append((name, partial(_hide, rows, frame.causal)))
            elif self.copies != 1:
                hooks.append((name, partial(_weigh, rows, log(self.copies))))
        return hooks

    def _add(
        self, model: Any, rows: slice, tokens: Tensor, hook: Any
    ) -> Float[Tensor, "batch token d_model"]:
        added = self._start(model, tokens, tokens[:, rows.start :]).to(tokens.dtype)
        return torch.cat((tokens[:, : rows.start], added, tokens[:, rows.start :]), dim=1)

    def _start(
        self, model: Any, tokens: Tensor, patches: Float[Tensor, "batch patch d_model"]
    ) -> Float[Tensor, "batch added d_model"]:
        zeros = tokens.new_zeros(tokens.shape[0], self.n_tokens, tokens.shape[2])
        if self.init == "zero_before_ln_pre":
            return zeros if model.parts.ln_pre is None else model.parts.ln_pre(zeros)
        if self.init == "patch_mean":
            return zeros + patches.mean(dim=1, keepdim=True)
        if self.init == "patch_gaussian":
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(1, *zeros.shape[1:], generator=generator).to(zeros)
            return patches.mean(dim=1, keepdim=True) + noise * deviation(patches)
        return zeros


def _hide(rows: slice, causal: bool, mask: Tensor, hook: Any) -> AttentionMask:
    return hide_keys(mask, chosen(rows, mask.shape[2], mask.device), causal)


def _weigh(rows: slice, logit: float, mask: Tensor, hook: Any) -> AttentionMask:
    return weigh_keys(mask, chosen(rows, mask.shape[2], mask.device), logit)


@dataclass(frozen=True, repr=False)
class TestTimeRegister(Intervention):
    """Moves the register neurons' activation into added, untrained tokens.

        paper:      a[r, n] = scale * max_t a[t, n],  a[t, n] = 0 for every other token t
        reference:  a[r, n] = scale * a[t*, n*],  (t*, n*) = argmax_{t, n} |a[t, n]| of the layer,
                    other tokens filled by `fill`, [CLS] untouched

    Shapes: a is `blocks.{l}.mlp.hook_post`, [batch, token, neuron]; every image of a batch is
    edited by itself.

    Raises:
        InterventionError: no neurons; a neuron that the model does not have; other numbers of scales and
            registers; neurons that another part of the composition moves or overwrites.

    Source: arXiv 2506.08010, Algorithm 2 ('paper', the default); the authors' public code
    ('reference'), whose published numbers it reproduces.

    Example:
        >>> TestTimeRegister({5: [599]})
        <TestTimeRegister: 1 neuron; layer 5: 599 moved to 1 register (paper)>
    """

    __test__ = False  # pytest: not a test class

    neurons: Neurons
    """The register neurons."""
    n_registers: int = 1
    """Added tokens."""
    semantics: Semantics = "paper"
    """'paper' or 'reference'; see above."""
    fill: Fill = "zero"
    """What the other tokens get: zero; their mean over patches; that mean only where the value is
    above mean + 1 standard deviation; or what they had."""
    init: Init | None = None
    """What the register starts from (see ExtraTokens). None: zero for 'paper',
    `zero_before_ln_pre` for 'reference'."""
    assign: Assign | None = None
    """Several registers: 'split' gives each neuron to one register at random (paper), 'same' the
    value to all (reference), 'outlier_rank' the values at the k-th most outlying token to the k-th
    register: that where the neurons of the layer write the k-th largest update |a W_out|. None: as
    the semantics says."""
    scale: float | tuple[float, ...] = 1.0
    """Factor on the moved value, or one per register."""
    visible_from_layer: int = 0
    """Before this layer no token attends to the registers."""
    search: Search | None = None
    """Which tokens the maximum runs over: all (Algorithm 2), patches only (body text), or the first
    token of a text, which alone no token comes before. None: all of an image, 'bos' of a text."""
    multiplicity: float = 1.0
    """tau: as how many keys each register counts in attention, log tau being added to its logits. One
    register takes the place of several outlier keys; `calibrate_multiplicity` finds how many."""
    seed: int = 0
    """Of the random split and of a Gaussian start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        self._check()

    def _check(self) -> None:
        if not len(self.neurons):
            raise InterventionError(
                "A test-time register without neurons is no identity: the added token still draws "
                "attention. Use Empty() for the plain model, or ExtraTokens() for that control."
            )
        if isinstance(self.scale, tuple) and len(self.scale) != self.n_registers:
            raise InterventionError(
                f"{len(self.scale)} scales for {self.n_registers} registers: give one number, or one each."
            )
        check_choice("semantics", self.semantics, Semantics)
        check_choice("fill", self.fill, Fill)
        check_choice("assign", self._assign, Assign)
        check_choice("search", self.search or "all", Search)
        _ = self._tokens  # checks the fields that both share

    @property
    def _assign(self) -> Assign:
        return self.assign or ("split" if self.semantics == "paper" else "same")

    @property
    def _tokens(self) -> ExtraTokens:
        start = "zero" if self.semantics == "paper" else "zero_before_ln_pre"
        return ExtraTokens(
            self.n_registers,
            self.init or start,
            self.visible_from_layer,
            self.multiplicity,
            self.seed,
        )

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds."""
        return self.n_registers

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        means = self.fill in ("mean", "only_outliers")
        return means or self.search in ("all", "patches") or self._tokens.looks_ahead

    @property
    def moved_neurons(self) -> NeuronSet:
        """See Intervention."""
        return self.neurons

    def describe(self) -> str:
        """What it does, in words."""
        defaults = {f: type(self).__dataclass_fields__[f].default for f in _OPTIONS}
        changed = [f"{f}={getattr(self, f)}" for f in _OPTIONS if getattr(self, f) != defaults[f]]
        to = f"{self.n_registers} register{'s' * (self.n_registers > 1)}"
        return f"{self.neurons.describe()} moved to {to} ({', '.join([self.semantics, *changed])})"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        owners = self._owners()
        hooks = self._tokens._hooks(frame)
        names = self.neurons.hook_names(frame.model)
        for name, (layer, neurons) in zip(names, self.neurons.layers, strict=True):
            owner = torch.tensor([owners[layer, neuron] for neuron in neurons])
            move = partial(self._move, frame, layer, torch.tensor(neurons), owner)
            hooks.append((name, move))
        return hooks

    def _owners(self) -> dict[tuple[int, int], int]:
        """Register of every neuron under a split: sizes as even as can be, the draw seeded."""
        order = torch.randperm(
            len(self.neurons), generator=torch.Generator().manual_seed(self.seed)
        )
        return {
            pair: int(place) % self.n_registers
            for pair, place in zip(self.neurons, order.tolist(), strict=True)
        }

    def _move(
        self, frame: Frame, layer: int, index: Tensor, owner: Tensor, post: Tensor, hook: Any
    ) -> Float[Tensor, "batch token neuron"]:
        index = index.to(post.device)
        values = post[:, :, index]  # [batch, token, selected]
        layout = frame.layout(post.shape[1])
        patches = values[:, layout.patches]
        searched = values[:, searched_rows(self.search, frame, post.shape[1])]
        if self._assign == "outlier_rank":
            write = frame.model.blocks[layer].mlp.W_out[index]
            target = self._ranked(searched, write)
        else:
            target = self._register_values(searched, owner)
        others = self._filled(values, patches, layout.cls)
        rows = slice(frame.first_row, frame.first_row + self.n_registers)
        edited = torch.cat((others[:, : rows.start], target, others[:, rows.stop :]), dim=1)
        return post.index_copy(2, index, edited)

    @property
    def _scales(self) -> tuple[float, ...]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.n_registers

    def _register_values(
        self, searched: Float[Tensor, "batch token selected"], owner: Tensor
    ) -> Float[Tensor, "batch register selected"]:
        if self.semantics == "reference":
            target = _strongest_of_layer(searched, self._scales)
        else:
            target = searched.amax(dim=1, keepdim=True) * _column(self._scales, searched)
        if self._assign == "same" or self.n_registers == 1:
            return target
        registers = torch.arange(self.n_registers, device=target.device)
        mine = owner.to(target.device)[None, :] == registers[:, None]  # [register, selected]
        return torch.where(mine, target, torch.zeros_like(target))

    def _ranked(
        self,
        searched: Float[Tensor, "batch token selected"],
        write: Float[Tensor, "selected d_model"],
    ) -> Float[Tensor, "batch register selected"]:
        """The values at the tokens where these neurons write most, in that order."""
        if searched.shape[1] < self.n_registers:
            raise InterventionError(
                f"assign='outlier_rank' gives each of {self.n_registers} registers another token, but "
                f"the search is over {searched.shape[1]}. Ask for fewer registers."
            )
        update = (searched.detach() @ write.detach().to(searched)).float().norm(dim=-1)
        tokens = update.topk(self.n_registers, dim=1).indices[:, :, None]
        values = searched.gather(1, tokens.expand(-1, -1, searched.shape[2]))
        return values * _column(self._scales, searched)

    def _filled(self, values: Tensor, patches: Tensor, cls: slice) -> Tensor:
        """The other tokens' new values; rows of the registers are overwritten afterwards."""
        if self.fill == "same":
            return values
        fill = torch.zeros_like(values[:, :1])
        if self.fill != "zero":
            fill = patches.mean(dim=1, keepdim=True)
        filled = fill.expand_as(values)
        if self.fill == "only_outliers":
            high = values > fill + patches.std(dim=1, keepdim=True)
            filled = torch.where(high, filled, values)
        if self.semantics == "reference":
            filled = torch.cat((values[:, cls], filled[:, cls.stop :]), dim=1)
        return filled


def searched_rows(search: Search | None, frame: Frame, n_tokens: int) -> slice:
    """Rows that the strongest activation is looked for in; see TestTimeRegister.search."""
    search = search or ("bos" if frame.causal else "all")
    return slice(None) if search == "all" else frame.layout(n_tokens).part(search)


def _column(scales: tuple[float, ...], like: Tensor) -> Float[Tensor, "1 register 1"]:
    return like.new_tensor(scales)[None, :, None]


def _strongest_of_layer(
    searched: Float[Tensor, "batch token selected"], scales: tuple[float, ...]
) -> Float[Tensor, "batch register selected"]:
    """One signed value of largest magnitude for all neurons, register by register.

    The reference writes its registers one after another and looks for the extreme anew each time,
    so a scale above 1 also raises the registers after it.
    """
    flat = searched.flatten(1)
    extreme = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))
    registers = []
    for scale in scales:
        registers.append(extreme * scale)
        extreme = torch.where(registers[-1].abs() > extreme.abs(), registers[-1], extreme)
    return torch.stack(registers, dim=1).expand(-1, -1, searched.shape[2])


_OPTIONS = (
    "fill",
    "init",
    "assign",
    "scale",
    "visible_from_layer",
    "search",
    "multiplicity",
    "seed",
)
