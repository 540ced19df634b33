"""What is chosen on the page, and what it means: an intervention, Python, JSON."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    Intervention,
    MoveNeurons,
    NeuronSet,
    Positions,
    TestTimeRegister,
    ZeroNeurons,
)

Kind = Literal[
    "test-time register", "zero the neurons", "move outliers", "added token alone", "nothing"
]
Semantics = Literal["paper", "reference"]
Fill = Literal["zero", "mean", "only_outliers", "same"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Settings:
    """The state of the page, as far as it says what to do to a forward pass."""

    kind: Kind = "test-time register"
    """What to do."""
    neurons: NeuronSet = NeuronSet()
    """The neurons that are switched on."""
    n_registers: int = 1
    """Added tokens of a register, or of the control."""
    semantics: Semantics = "paper"
    """Of a register."""
    fill: Fill = "zero"
    """What tokens other than the register keep."""
    patches: tuple[tuple[int, int], ...] = ()
    """Where outliers are moved to: (row, column) of the patches drawn on."""

    def intervention(self) -> Intervention:
        """The intervention that the settings describe.

        Raises:
            InterventionError: no neurons are on, or nothing is drawn.

        Example:
            >>> Settings("zero the neurons", NeuronSet.of({3: [7]})).intervention()
            <ZeroNeurons: zero in 1 neuron; layer 3: 7>
        """
        if self.kind == "nothing":
            return Empty()
        if self.kind == "added token alone":
            return ExtraTokens(self.n_registers)
        if not len(self.neurons):
            raise InterventionError(
                f"No neurons are on, so {self.kind!r} has nothing to act on. Tick some, or write "
                "them as 'layer: neuron, neuron; layer: neuron'."
            )
        if self.kind == "zero the neurons":
            return ZeroNeurons(self.neurons)
        if self.kind == "move outliers":
            return MoveNeurons(self.neurons, to=self._target())
        return TestTimeRegister(
            self.neurons, n_registers=self.n_registers, semantics=self.semantics, fill=self.fill
        )

    def _target(self) -> Positions:
        if not self.patches:
            raise InterventionError(
                "Nothing is drawn, so outliers have nowhere to go. Draw on the picture with the brush."
            )
        return Positions(self.patches)

    def python(self) -> str:
        """A Python expression that makes the intervention.

        Raises:
            InterventionError: as `intervention`.

        Example:
            >>> Settings("zero the neurons", NeuronSet.of({3: [7]})).python()
            'tt.ZeroNeurons({3: [7]})'
        """
        self.intervention()
        neurons = {layer: list(ns) for layer, ns in self.neurons.layers}
        if self.kind == "nothing":
            return "tt.Empty()"
        if self.kind == "added token alone":
            return f"tt.ExtraTokens({self.n_registers})"
        if self.kind == "zero the neurons":
            return f"tt.ZeroNeurons({neurons})"
        if self.kind == "move outliers":
            return f"MoveNeurons({neurons}, to={self.patches})"
        default = Settings()
        options = {
            name: getattr(self, name)
            for name in ("n_registers", "semantics", "fill")
            if getattr(self, name) != getattr(default, name)
        }
        return f"tt.TestTimeRegister({', '.join([str(neurons), *_keywords(options)])})"


def _keywords(options: dict[str, object]) -> list[str]:
    return [f"{name}={value!r}" for name, value in options.items()]


def parse_neurons(text: str) -> NeuronSet:
    """Neurons from 'layer: neuron, neuron; layer: neuron'.

    Raises:
        InterventionError: another form; says which part.

    Example:
        >>> parse_neurons("2: 93, 551; 4: 464")
        NeuronSet(3 neurons; layer 2: 93, 551; layer 4: 464)
    """
    pairs: list[tuple[int, int]] = []
    for part in filter(str.strip, re.split(r"[;\n]", text)):
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+(?:[\s,]+\d+)*)[\s,]*", part, flags=re.ASCII)
        if match is None:
            raise InterventionError(
                f"{part.strip()[:40]!r} names no neurons. Write 'layer: neuron, neuron', several "
                "layers separated by semicolons, e.g. '2: 93, 551; 4: 464'."
            )
        pairs += [(int(match[1]), int(neuron)) for neuron in re.findall(r"\d+", match[2])]
    return NeuronSet.of(pairs)


def written_neurons(neurons: NeuronSet) -> str:
    """What `parse_neurons` reads.

    Example:
        >>> written_neurons(NeuronSet.of({2: [93, 551], 4: [464]}))
        '2: 93, 551; 4: 464'
    """
    return "; ".join(f"{layer}: {', '.join(map(str, ns))}" for layer, ns in neurons.layers)
