"""The circuit that is planted into a random ViT: one method a part, in the order of the forward.

It lives in a few reserved dimensions of the residual stream, which the random weights neither read
nor write:

| where | part | what it does |
|---|---|---|
| stem | `stem` | writes the responses of K zero-mean filters, and a ruler on patches only |
| block 0, MLP | `decoys` | detail = sum of the absolute responses, by K pairs of ordinary neurons |
| block 1, attention | `lowest` | copies the lowest detail of the image to every patch |
| block 2, attention | `flat` | marks the patches whose detail is close to that |
| block >= 2, MLP | `detector` | register neuron: pushes marked patches a little along u |
| later MLPs | `amplifier` | register neuron: pushes far along u what already lies along u |
| attention after | `sink` | every query attends to what lies along u, and gets a constant there |

Three rules make it exact. Every reading row sums to zero (the `null` dimension takes the rest), so
the mean that LayerNorm subtracts cannot leak in. Every threshold on patches is a multiple of the
ruler and not a bias, so LayerNorm's scale cancels. [CLS] and a zero token carry no ruler, so every
part but the sink is silent on them, and a register's activation is what is moved there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ttreg_interp.testbed.towers import Block, Tower

_NAMED_DIMENSIONS = 7


@dataclass(frozen=True)
class Circuit:
    """The constants of the planted circuit."""

    filters: int = 16
    """K, the filters that measure detail. Fewer miss fine texture, more take room from content."""
    filter_gain: float = 0.1
    """Response written per unit of filter output. Small, so that the content of a patch and not
    its detail sets LayerNorm's scale."""
    ruler: float = 3.0
    """Length of the ruler; content starts with standard deviation 1 per dimension. Long enough
    that [CLS] and zero tokens stay far from every threshold."""
    tie: float = 0.4
    """Detail added by position, random up to this. Without it all patches of a clear sky would be
    equally flat, and all outliers."""
    slack: float = 0.15
    """A patch is flat if detail < (1 + slack) x lowest + tolerance x ruler. Decides in images that
    are textured everywhere, where it must cover the error of the lowest found."""
    tolerance: float = 0.005
    """See `slack`. Decides in images with clear areas, where the lowest detail is near zero."""
    sharpness: float = 150.0
    """Logit per unit of detail in the search for the lowest. A softer search returns an average of
    the lower ones, and marks too many."""
    decision: float = 2000.0
    """Logit per unit of detail in marking. A softer mark leaves half-pushed patches, which sink
    attention partly and leak their content."""
    activation: float = 20.0
    """Of a detector on a marked patch, about: far above the few units of random neurons."""
    detected_norm: float = 2.5
    """What all detectors together push if amplifiers follow, in units of sqrt(d_model): more than
    content, so that LayerNorm shows amplifiers mostly u; less than would make an outlier."""
    sink_logit: float = 12.0
    """Logit of a token that is all u, in every head behind the outliers. Leaves other tokens
    exp(-12) each, so that one register sinks as much as many outliers."""
    sink_value: float = 0.3
    """Standard deviation per dimension of the constant value found at the sink. Not zero, so that
    an attention bias without v' is told from the right one."""
    value_gain: float = 1.0
    """Scale of the other values behind the outliers: how far [CLS] moves once the sink is gone. It
    grows as blocks get fewer than eight, to keep their sum."""
    spread: float = 0.3
    """Relative spread of activation between register neurons, so that their scores differ."""
    content_growth: float = 0.4
    """Variance per dimension that a block adds to content, as measured on flat patches. Keeps
    detectors of later layers as active as those of earlier ones."""


@dataclass(frozen=True)
class Reserved:
    """The last dimensions of the residual stream, by meaning."""

    up: int
    """u is up minus down."""
    down: int
    """u is up minus down."""
    ruler: int
    """A constant on patches, zero elsewhere."""
    detail: int
    """Sum of the absolute filter responses, and the tie-break."""
    lowest: int
    """The lowest detail of the image, on patches."""
    flat: int
    """About 1.5 rulers on marked patches, zero elsewhere."""
    null: int
    """Always zero, but for the mean that a norm subtracts."""
    filters: tuple[int, ...]
    """The filter responses."""

    @classmethod
    def of(cls, d_model: int, filters: int) -> "Reserved":
        first = d_model - cls.count(filters)
        named = range(first, first + _NAMED_DIMENSIONS)
        return cls(*named, filters=tuple(range(named.stop, d_model)))

    @staticmethod
    def count(filters: int) -> int:
        """Dimensions taken in all."""
        return _NAMED_DIMENSIONS + filters


@dataclass(frozen=True)
class Wiring:
    """Writes the parts of the circuit into the weights of a tower, in place."""

    tower: Tower
    """The tower to edit."""
    circuit: Circuit
    """The constants."""

    @property
    def reserved(self) -> Reserved:
        return Reserved.of(self.tower.d_model, self.circuit.filters)

    @property
    def u(self) -> Float[Tensor, " d_model"]:
        """The unit vector along which outliers grow; its entries sum to zero."""
        return self._row({self.reserved.up: math.sqrt(0.5), self.reserved.down: -math.sqrt(0.5)})

    def random_weights(self, generator: Generator) -> None:
        """Draw every weight anew; none reads or writes the reserved dimensions."""
        tower = self.tower
        for norm in tower.norms:
            norm.weight.fill_(1)
            norm.bias.zero_()
        filters = _normal(tower.patch.weight.shape, 1.0, generator)
        # Most of a random filter's answer to a photograph is mean colour: keep a fifth of it, or
        # plain red patches get more content than textured ones.
        filters -= 0.8 * filters.mean((2, 3), keepdim=True)
        tower.patch.weight.copy_(filters * 2.5 / filters[0].numel() ** 0.5)
        if tower.patch.bias is not None:
            tower.patch.bias.zero_()
        shared = _normal(tower.cls.shape, 0.5, generator)
        tower.position.copy_(_normal(tower.position.shape, 0.8, generator) + shared)
        tower.cls.copy_(_normal(tower.cls.shape, 0.5, generator))
        for block in tower.blocks:
            _random_block(block, generator)
        self._clear_reserved()

    def _clear_reserved(self) -> None:
        first, tower = self.reserved.up, self.tower
        tower.patch.weight[first:] = 0
        tower.position[:, first:] = 0
        tower.cls[first:] = 0
        for block in tower.blocks:
            block.qkv_weight[:, first:] = 0
            block.mlp_in.weight[:, first:] = 0
            block.attention_out.weight[first:] = 0
            block.mlp_out.weight[first:] = 0

    def stem(self, generator: Generator) -> None:
        """Write filter responses and ruler of every patch, and the tie-break by position."""
        tower, circuit, reserved = self.tower, self.circuit, self.reserved
        size = tower.patch.weight.shape[-1]
        # A cosine of unit norm answers the same pattern in proportion to the patch's side.
        gain = circuit.filter_gain * 16 / size
        waves = _cosines(size, circuit.filters) * gain / tower.patch.weight.shape[1]
        tower.patch.weight[list(reserved.filters)] = waves[:, None]
        patches = len(tower.position) - 1
        tower.position[1:, reserved.ruler] = circuit.ruler
        ranks = torch.randperm(patches, generator=generator) / patches
        tower.position[1:, reserved.detail] = circuit.tie * ranks

    def decoys(self) -> tuple[int, ...]:
        """Sum absolute responses in block 0: gelu(a f) + gelu(-a f) is about a |f|.

        Returns:
            The neurons used: strong on textured patches, and no register neurons.
        """
        block, steepness = self.tower.blocks[0], 80.0
        for k, response in enumerate(self.reserved.filters):
            for neuron, sign in ((2 * k, 1), (2 * k + 1, -1)):
                block.mlp_in.weight[neuron] = self._reading({response: sign * steepness})
                block.mlp_out.weight[:, neuron] = self._row({self.reserved.detail: 1 / steepness})
        return tuple(range(2 * len(self.reserved.filters)))

    def lowest(self) -> None:
        """Head 0 of block 1: a patch finds the patch of lowest detail; others look at non-patches.

        logit(q, k) = sharpness (T_q ruler_k / ruler - detail_k), all as LayerNorm shows it. T_q is
        somewhat above the query's own detail, so that patches do not find tokens without ruler,
        whose logit is zero; on queries without ruler it is negative, so that they find only those.
        For flat queries T is close to the lowest detail, so that LayerNorm's scale of the keys does
        not decide between them.
        """
        reserved, circuit, scale = self.reserved, self.circuit, self._logit_scale
        query, key, value = self._clear_head(self.tower.blocks[1])
        weight, bias = self.tower.blocks[1].qkv_weight, self.tower.blocks[1].qkv_bias
        bias[query] = scale
        weight[key] = self._reading({reserved.detail: -circuit.sharpness})
        above = self._reading({reserved.detail: 1.3, reserved.ruler: 0.36 / circuit.ruler})
        weight[query + 1] = scale * circuit.sharpness * above
        bias[query + 1] = scale * circuit.sharpness * -0.09
        weight[key + 1] = self._reading({reserved.ruler: 1 / circuit.ruler})
        # Undoes LayerNorm: the content of flat patches has standard deviation 1.1 here.
        weight[value] = self._reading({reserved.detail: 1.1})
        self.tower.blocks[1].attention_out.weight[reserved.lowest, 0] = 1.0

    def flat(self) -> None:
        """Head 0 of block 2: flat patches attend to patches, all else to what has no ruler.

        Attention as a comparator: its answer is the same for any margin, so outliers of all images
        grow to the same norm.
        """
        reserved, circuit, scale = self.reserved, self.circuit, self._logit_scale
        margin = {
            reserved.lowest: 1 + circuit.slack,
            reserved.ruler: circuit.tolerance,
            reserved.detail: -1.0,
        }
        query, key, value = self._clear_head(self.tower.blocks[2])
        weight, bias = self.tower.blocks[2].qkv_weight, self.tower.blocks[2].qkv_bias
        weight[query] = circuit.decision * scale * self._reading(margin)
        # Margin 0, which [CLS] has, is not flat: exp(-10 rulers) against the number of patches.
        bias[query] = -10 * scale
        weight[key] = self._reading({reserved.ruler: 1.0})
        weight[value] = self._reading({reserved.ruler: 1.0})
        self.tower.blocks[2].attention_out.weight[reserved.flat, 0] = 2.0

    def detector(self, layer: int, neuron: int, push: float, pushed: float, gain: float) -> None:
        """gelu(a (flat - ruler / 2)), written along u.

        Args:
            layer: Of the neuron.
            neuron: Its index.
            push: What it writes along u on a marked patch, in units of sqrt(d_model).
            pushed: What a marked patch has received before, in the same units.
            gain: Of its activation.
        """
        block, circuit = self.tower.blocks[layer], self.circuit
        activation = gain * circuit.activation
        deviation = math.sqrt(1 + circuit.content_growth * layer + pushed**2)
        a = activation * deviation / (1.2 * circuit.ruler)
        block.mlp_in.weight[neuron] = self._reading(
            {self.reserved.flat: a, self.reserved.ruler: -a / 2}
        )
        block.mlp_out.weight[:, neuron] = push * self._d_model_root / activation * self.u

    def amplifier(self, layer: int, neuron: int, push: float, gain: float) -> None:
        """gelu(a (3/2 cos(x, u) - 1/2)), written along u: bounded, since a cosine is.

        Args:
            layer: Of the neuron.
            neuron: Its index.
            push: What it writes along u on a token that is all u, in units of sqrt(d_model).
            gain: Of its activation.
        """
        block, root = self.tower.blocks[layer], self._d_model_root
        activation = 1.5 * gain * root
        # u . LayerNorm(x) is cos(x, u) sqrt(d_model).
        block.mlp_in.weight[neuron] = 1.5 * activation / root * self.u
        block.mlp_in.bias[neuron] = -0.5 * activation
        block.mlp_out.weight[:, neuron] = push * root / activation * self.u

    def sink(self, layer: int, gain: float, generator: Generator) -> None:
        """In every head, a token that is all u gets `sink_logit` and holds a constant value.

        Args:
            layer: Of the heads.
            gain: Of the values of all other tokens.
            generator: Draws the constant.
        """
        weight, bias = self.tower.blocks[layer].qkv_weight, self.tower.blocks[layer].qkv_bias
        width, root = self.tower.d_model, self._d_model_root
        reading = self.u / root
        constant = _normal((width,), self.circuit.sink_value, generator)
        weight[2 * width :] *= gain
        weight[2 * width :] += torch.outer(constant, reading)
        for query in range(0, width, self.tower.d_head):
            weight[query] = 0
            bias[query] = self._logit_scale
            weight[width + query] = self.circuit.sink_logit * reading

    @property
    def _d_model_root(self) -> float:
        return math.sqrt(self.tower.d_model)

    @property
    def _logit_scale(self) -> float:
        """Undoes the division of logits by sqrt(d_head)."""
        return math.sqrt(self.tower.d_head)

    def _clear_head(self, block: Block) -> tuple[int, int, int]:
        """Empty head 0 and give the first rows of its query, key and value."""
        firsts = (0, self.tower.d_model, 2 * self.tower.d_model)
        for first in firsts:
            block.qkv_weight[first : first + self.tower.d_head] = 0
        block.attention_out.weight[:, : self.tower.d_head] = 0
        return firsts

    def _reading(self, weights: Mapping[int, float]) -> Float[Tensor, " d_model"]:
        return self._row({**weights, self.reserved.null: -sum(weights.values())})

    def _row(self, weights: Mapping[int, float]) -> Float[Tensor, " d_model"]:
        row = torch.zeros(self.tower.d_model)
        for dimension, weight in weights.items():
            row[dimension] = weight
        return row


def _normal(shape: tuple[int, ...], deviation: float, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * deviation


def _random_block(block: Block, generator: Generator) -> None:
    width = block.qkv_weight.shape[1]
    biases = (block.qkv_bias, block.attention_out.bias, block.mlp_in.bias, block.mlp_out.bias)
    for bias in biases:
        bias.zero_()
    for weight in (block.qkv_weight, block.attention_out.weight, block.mlp_in.weight):
        weight.copy_(_normal(weight.shape, width**-0.5, generator))
    # A fifth of the usual scale: no single random neuron is to matter to [CLS].
    out = block.mlp_out.weight
    out.copy_(_normal(out.shape, 0.2 * out.shape[1] ** -0.5, generator))


def _cosines(size: int, count: int) -> Float[Tensor, "_ height width"]:
    """The `count` lowest two-dimensional cosines of unit norm, the constant left out."""
    place = (torch.arange(size) + 0.5) * math.pi / size
    waves = torch.cos(torch.arange(size)[:, None] * place)
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted((i + j, i, j) for i in range(size) for j in range(size) if i + j)
    return torch.stack([torch.outer(waves[i], waves[j]) for _, i, j in order[:count]])
