"""How register neurons are searched: every choice, and what finds it where none is made."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ttreg_interp.errors import DataError

Semantics = Literal["auto", "paper", "reference"]
Score = Literal["abs", "signed", "contrast", "contribution", "projection"]
Candidates = Literal["patches", "all"]
ThresholdRule = Literal["valley", "absolute", "sigma", "mad", "percentile"]

SCORES: tuple[Score, ...] = get_args(Score)

_PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"score": "projection", "candidates": "patches", "threshold": "valley"},
    "paper": {"score": "signed", "candidates": "patches", "threshold": "sigma"},
    "reference": {"score": "abs", "candidates": "all", "threshold": "absolute"},
}

_LEAST = {"batch_size": 1, "survey_images": 2, "recursions": 0, "top_k": 1, "workers": 0}
_ALLOWED = {
    "semantics": get_args(Semantics),
    "score": (*SCORES, None),
    "candidates": (*get_args(Candidates), None),
    "threshold": (*get_args(ThresholdRule), None),
}


@dataclass(frozen=True)
class FindConfig:
    """Every choice of `find_register_neurons`; what is None is found from the images.

    Example:
        >>> FindConfig(semantics="paper").resolved().score
        'signed'
    """

    semantics: Semantics = "auto"
    """Preset for score, candidates and threshold: 'auto' (projection, patches, valley), 'paper'
    (signed, patches, mean + 3 sigma) or 'reference' (abs, all tokens, absolute; the authors' code)."""
    score: Score | None = None
    """Ranks the neurons: 'abs' (mean |activation| at outliers), 'signed' (mean), 'contrast' (at
    outliers minus elsewhere, over the standard deviation), 'contribution' (abs times the norm of
    the output row) or 'projection' (what the neuron writes along the outlier). None: the preset's."""
    candidates: Candidates | None = None
    """Which tokens may be outliers: 'patches', or 'all' with [CLS]. None: the preset's."""
    threshold: ThresholdRule | None = None
    """Rule for the norm above which a token is an outlier: 'valley' (between the two modes),
    'absolute', 'sigma' (mean + value x standard deviation), 'mad' (median + value x scaled median
    deviation) or 'percentile'. None: the preset's."""
    threshold_value: float | None = None
    """Number of the rule: a norm, a factor or a percentile. None: 2.5, (none), 3, 4, 98 in the order
    above; for 'valley' it is the least ratio of outliers to the median."""
    detect_layer: int | None = None
    """Block whose output norms tell outliers; negative numbers count from the end. None: found."""
    first_layer: int | None = None
    """First layer of the search for neurons. None: found; never layer 0."""
    last_layer: int | None = None
    """Last layer of the search, inclusive. None: found."""
    top_k: int | None = None
    """How many neurons. None: as few as suppress the outliers, by a greedy curve on held-out images."""
    suppress_to: float = 0.05
    """Share of the outliers that may be left, when top_k is found."""
    guard: float = 0.2
    """Largest drift of the output, 1 - cosine to the intact model's, that top_k may cost."""
    held_out: float = 0.25
    """Share of the images kept back from scoring, on which top_k and the evidence are measured."""
    survey_images: int = 64
    """Images from which threshold and layers are found."""
    sparsity: tuple[float, float] | None = None
    """Activation and share: count a neuron in an image only if it is below that activation on at
    least that share of the tokens. The authors' optional filter, with (0.5, 0.5). None: no filter."""
    recursions: int = 0
    """Further searches on the edited model, whose neurons join the list (arXiv 2605.05206)."""
    evidence: bool = True
    """Whether to measure controls, stability and the effect of single neurons."""
    batch_size: int = 8
    """Images of one forward pass."""
    workers: int = 0
    """Processes that decode images."""
    seed: int = 0
    """Of every draw: ordinary tokens, random controls, bootstrap."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            found = getattr(self, name)
            if found is not None and found < least:
                raise DataError(f"{name} is at least {least}; found {found}.")
        if not 0 <= self.held_out < 1 or not 0 <= self.suppress_to < 1:
            raise DataError(
                f"held_out and suppress_to are shares in [0, 1); found {self.held_out} and "
                f"{self.suppress_to}."
            )
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} is one of {allowed}; found {getattr(self, name)!r}.")

    def resolved(self) -> "FindConfig":
        """The same with the preset's score, candidates and threshold filled in."""
        preset = _PRESETS[self.semantics]
        open_fields = {name: preset[name] for name in preset if getattr(self, name) is None}
        return replace(self, **open_fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `FindConfig(**d)` restores it."""
        return asdict(self)
