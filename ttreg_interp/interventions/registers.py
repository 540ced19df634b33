"""The test-time register, and its control: an added token that nothing is moved to."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention, flattened
from ttreg_interp.interventions.neuron_set import NeuronSet

Semantics = Literal["paper", "reference"]
Init = Literal["zero", "zero_before_ln_pre", "patch_mean", "patch_gaussian"]


@dataclass(frozen=True, repr=False)
class ExtraTokens(Intervention):
    """Adds untrained tokens and moves nothing to them: the control for a test-time register.

    A token of zeros is not inert: it takes exp(0) of softmax mass in every head that has no
    stronger key (2506.08010's code adds it before `ln_pre`, so that it starts as that norm's bias).

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
    """Before this layer no other token may attend to them."""
    copies: float = 1.0
    """As how many keys each counts: log(copies) is added to its attention logits."""
    seed: int = 0
    """Of the Gaussian start."""

    def __post_init__(self) -> None:
        if self.n_tokens < 1 or self.copies <= 0 or self.visible_from_layer < 0:
            raise InterventionError(
                f"n_tokens must be >= 1, copies > 0 and visible_from_layer >= 0; found "
                f"{self.n_tokens}, {self.copies}, {self.visible_from_layer}."
            )

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds."""
        return self.n_tokens

    def describe(self) -> str:
        """What it does, in words."""
        count = f"{self.n_tokens} token{'s' * (self.n_tokens > 1)} added"
        start = {"zero": "zero after ln_pre", "zero_before_ln_pre": "zero before ln_pre"}
        hidden = (
            f", hidden before layer {self.visible_from_layer}" if self.visible_from_layer else ""
        )
        weight = f", each counting as {self.copies:g} keys" if self.copies != 1 else ""
        return f"{count}, {start.get(self.init, self.init.replace('_', ' '))}{hidden}{weight}"

    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
        if self.visible_from_layer > model.cfg.n_layers:
            raise InterventionError(
                f"visible_from_layer={self.visible_from_layer}: {model.cfg.model_name} has "
                f"{model.cfg.n_layers} blocks, so 0 to {model.cfg.n_layers} are possible."
            )
        rows = slice(first_row, first_row + self.n_tokens)
        hooks: list[NamedHook] = [("hook_full_embed", partial(self._add, model, rows))]
        for layer in range(model.cfg.n_layers):
            logit = float("-inf") if layer < self.visible_from_layer else self._log_copies
            if logit:
                hooks.append((f"blocks.{layer}.attn.hook_mask", partial(_weigh, rows, logit)))
        return hooks

    @property
    def _log_copies(self) -> float:
        return float(torch.tensor(self.copies, dtype=torch.float64).log())

    def _add(self, model: Any, rows: slice, tokens: Tensor, hook: Any) -> Tensor:
        added = self._start(model, tokens, tokens[:, rows.start :])
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
            return patches.mean(dim=1, keepdim=True) + noise * patches.std(dim=1, keepdim=True)
        return zeros


def _weigh(rows: slice, logit: float, mask: Tensor, hook: Any) -> Tensor:
    """Add `logit` to the keys in `rows`, for every query."""
    n_queries, n_keys = mask.shape[-2:]
    keys = mask.new_zeros(n_keys)
    bias_keys = n_keys - n_queries  # an attention bias puts its keys in front
    keys[bias_keys + rows.start : bias_keys + rows.stop] = logit
    return mask + keys


@dataclass(frozen=True, repr=False)
class TestTimeRegister(Intervention):
    """Moves the register neurons' activation into added, untrained tokens.

        paper:      a[r, n] = max_t a[t, n],  a[t, n] = 0 for every other token t
        reference:  a[r, n] = scale * a[t*, n*],  (t*, n*) = argmax_{t, n} |a[t, n]| of the layer,
                    patches filled by `fill`, [CLS] untouched

    Shapes: a is `blocks.{l}.mlp.hook_post`, [batch, token, neuron]; every image of a batch is
    edited by itself.

    Source: arXiv 2506.08010, Algorithm 2 ('paper', the default); the authors' public code
    ('reference'), whose published numbers it reproduces.

    Example:
        >>> TestTimeRegister({5: [599]})
        <TestTimeRegister: 1 neuron; layer 5: 599 moved to 1 register (paper)>
    """

    __test__ = False  # pytest: not a test class

    neurons: NeuronSet
    """The register neurons."""
    n_registers: int = 1
    """Added tokens."""
    semantics: Semantics = "paper"
    """'paper' or 'reference'; see above."""
    fill: Literal["zero", "mean", "only_outliers", "same"] = "zero"
    """What the other tokens get: zero; their mean over patches; that mean only where the value is
    above mean + 1 standard deviation; or what they had."""
    init: Init | None = None
    """What the register starts from (see ExtraTokens). None: zero for 'paper',
    `zero_before_ln_pre` for 'reference'."""
    assign: Literal["split", "same"] | None = None
    """Several registers: 'split' gives each neuron to one register at random (paper), 'same' the
    value to all (reference). None: as the semantics says."""
    scale: float | tuple[float, ...] = 1.0
    """Factor on the moved value, or one per register."""
    visible_from_layer: int = 0
    """Before this layer no other token may attend to the registers."""
    search: Literal["all", "patches"] = "all"
    """Which tokens the maximum runs over: all (Algorithm 2) or patches only (body text)."""
    multiplicity: float = 1.0
    """As how many keys each register counts in attention."""
    seed: int = 0
    """Of the random split and of a Gaussian start."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        if isinstance(self.scale, Items):
            object.__setattr__(self, "scale", tuple(self.scale))
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
        _ = self._tokens  # checks the fields that both share

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

    def describe(self) -> str:
        """What it does, in words."""
        defaults = {f: type(self).__dataclass_fields__[f].default for f in _OPTIONS}
        changed = [f"{f}={getattr(self, f)}" for f in _OPTIONS if getattr(self, f) != defaults[f]]
        to = f"{self.n_registers} register{'s' * (self.n_registers > 1)}"
        return f"{self.neurons.describe()} moved to {to} ({', '.join([self.semantics, *changed])})"

    def check_compatible(self, others: Items[Any]) -> None:
        """Two registers may not move the same neuron.

        Raises:
            InterventionError: names the neurons that both claim.
        """
        for other in flattened(others):
            shared = self.neurons & other.neurons if isinstance(other, TestTimeRegister) else ()
            if len(shared):
                raise InterventionError(
                    f"Two test-time registers move {shared.describe()}: the second would find zeros. "
                    "Apply one, or give it n_registers=2."
                )

    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
        self.neurons.check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
        rows = slice(first_row, first_row + self.n_registers)
        hooks = self._tokens._hooks(model, first_row)
        owners = self._owners()
        for layer, neurons in self.neurons.layers:
            index = torch.tensor(neurons)
            owner = torch.tensor([owners[layer, neuron] for neuron in neurons])
            move = partial(self._move, model, index, owner, rows)
            hooks.append((f"blocks.{layer}.mlp.hook_post", move))
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
        self, model: Any, index: Tensor, owner: Tensor, rows: slice, post: Tensor, hook: Any
    ) -> Float[Tensor, "batch token neuron"]:
        index = index.to(post.device)
        values = post[:, :, index]  # [batch, token, selected]
        prefix = model.layout().n_prefix
        patches = values[:, max(rows.stop, prefix + model.n_added_tokens) :]
        target = self._register_values(values if self.search == "all" else patches, owner)
        others = self._filled(values, patches, model.layout().cls)
        edited = torch.cat((others[:, : rows.start], target, others[:, rows.stop :]), dim=1)
        return post.index_copy(2, index, edited)

    def _register_values(
        self, searched: Float[Tensor, "batch token selected"], owner: Tensor
    ) -> Float[Tensor, "batch register selected"]:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.n_registers
        if self.semantics == "reference":
            target = _strongest_of_layer(searched, scales)
        else:
            target = searched.amax(dim=1, keepdim=True) * searched.new_tensor(scales)[None, :, None]
        assign = self.assign or ("split" if self.semantics == "paper" else "same")
        if assign == "same" or self.n_registers == 1:
            return target
        registers = torch.arange(self.n_registers, device=target.device)
        mine = owner.to(target.device)[None, :] == registers[:, None]  # [register, selected]
        return torch.where(mine, target, torch.zeros_like(target))

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
