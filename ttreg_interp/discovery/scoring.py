"""The scoring run: survey, then one pass over the images that stops and resumes anywhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttreg_interp.discovery.checkpoint import RunState, Shard, load_or_none
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.distributed import agreed, current_shard, summed
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.progress import shown
from ttreg_interp.discovery.scores import GROUP, add_group, grouped
from ttreg_interp.discovery.stream import Batch, ImageStream, Part
from ttreg_interp.discovery.survey import Detection, NormSurvey, detect, survey_norms
from ttreg_interp.hooked.load import weights_hash

GROUPS_BETWEEN_SAVES = 4
"""Of one process."""

_CHOICES = (
    "candidates",
    "threshold",
    "threshold_value",
    "detect_layer",
    "held_out",
    "survey_images",
    "sparsity",
    "batch_size",
    "seed",
)
"""Fields of the configuration that the sums depend on."""


@dataclass(frozen=True)
class ScoringRun:
    """A model, its images, and the choices that the sums depend on."""

    model: Any
    """A HookedViT."""
    stream: ImageStream
    """All images, held-out ones included."""
    config: FindConfig
    """Resolved."""
    weights: str
    """Hash of the model's weights."""
    digest: str | None
    """Of the images."""
    progress: bool = False
    """Whether to show bars."""

    @classmethod
    def of(
        cls, model: Any, images: Any, config: FindConfig, progress: bool = False
    ) -> "ScoringRun":
        """The run of `find_register_neurons` with these arguments."""
        config = config.resolved()
        stream = ImageStream.for_model(model, images, config.batch_size, config.workers)
        digest = agreed(stream.digest)
        return cls(model, stream, config, weights_hash(model.source), digest, progress)

    def batches(self, takes: Callable[[int], bool]) -> Iterator[Batch]:
        """Those batches of the images that are not held out whose number is taken."""
        scored, _ = Part.split(self.config.held_out)
        return self.stream.batches(scored, takes)

    def sample(self) -> Iterator[Batch]:
        """The first batches, of at least `survey_images` images together."""
        seen = 0
        for batch in self.batches(lambda number: True):
            seen += len(batch)
            yield batch
            if seen >= self.config.survey_images:
                return

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for sums to be added."""
        choices = {name: getattr(self.config, name) for name in _CHOICES}
        return {
            **choices,
            "every_layer": self.scores_every_layer,
            "weights": self.weights,
            "images": self.digest,
        }

    @property
    def scores_every_layer(self) -> bool:
        """The reference ranks all layers; else layers 1 to the detection layer are enough."""
        return self.config.semantics == "reference" or self.config.first_layer == 0

    def layers(self, detect_layer: int) -> range:
        """Layers whose neurons are scored."""
        if self.scores_every_layer:
            return range(self.model.cfg.n_layers)
        last = detect_layer if self.config.last_layer is None else self.config.last_layer
        return range(min(1, detect_layer), max(last % self.model.cfg.n_layers, detect_layer) + 1)

    def observer(self, detection: Detection) -> Observer:
        """What runs a batch and reads what the scores are made of."""
        layers = self.layers(detection.detect_layer)
        return Observer(self.model, detection, layers, self.config.sparsity)

    def survey(self) -> NormSurvey:
        """Norms of the first images."""
        batches = shown(self.sample(), "norms", self.progress)
        return survey_norms(self.model, batches, self.config.candidates or "patches")

    def start(self, shard: Shard, survey: NormSurvey | None = None) -> RunState:
        """Choose threshold and layer, from that survey or a new one."""
        survey = self.survey() if survey is None else survey
        detection = detect(self.model, survey, self.config)
        return RunState(self.fingerprint(), survey, detection, shard=shard)

    def go_on(self, state: RunState, checkpoint: Path | None) -> RunState:
        """Score the batches that are left; saves now and then, and at the end."""
        if state.complete:
            return state
        done = state.batches
        left = self.batches(lambda n: n >= done and state.shard.takes(n // GROUP))
        observer = self.observer(state.detection)
        groups = grouped(shown(left, "scores", self.progress))
        for n_run, (number, batches) in enumerate(groups, start=1):
            add_group(state.sums, observer, batches, self.config.seed)
            state.batches = (number + 1) * GROUP
            if checkpoint is not None and n_run % GROUPS_BETWEEN_SAVES == 0:
                state.save(checkpoint)
        state.complete = True
        if checkpoint is not None:
            state.save(checkpoint)
        return state


def score(run: ScoringRun, checkpoint: str | Path | None) -> RunState:
    """The sums over all images; under torchrun, over all processes.

    Raises:
        ArtifactError: the checkpoint belongs to another run.
    """
    shard = current_shard()
    state = resumed(run, shard, _own_file(checkpoint, shard))
    return replace(state, sums=summed(state.sums), shard=Shard())


def resumed(run: ScoringRun, shard: Shard, file: Path | None) -> RunState:
    """One shard's sums, taken up from its checkpoint where there is one."""
    state = load_or_none(file)
    if state is not None:
        state.check_same_run(run.fingerprint(), str(file)).check_shard(shard, str(file))
    # Asked for in every process, as another one may not have saved anything when it was killed.
    survey = agreed(run.survey if state is None else lambda: state.survey)
    return run.go_on(state or run.start(shard, survey), file)


def _own_file(checkpoint: str | Path | None, shard: Shard) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path if shard.of == 1 else path.with_name(f"{path.name}.{shard.number}-of-{shard.of}")


def score_shard(
    model: Any,
    images: Any,
    config: FindConfig | None = None,
    *,
    shard: Shard,
    checkpoint: str | Path,
    progress: bool = False,
) -> Path:
    """Score one shard of the images and leave the sums in a file, for `merge`.

    Args:
        model: a HookedViT.
        images: all images of the run, not only this shard's.
        config: the same for all shards.
        shard: which batches.
        checkpoint: the file; an unfinished one is resumed.
        progress: show a bar.

    Raises:
        ArtifactError: the file belongs to another run.
    """
    run = ScoringRun.of(model, images, config or FindConfig(), progress)
    resumed(run, shard, Path(checkpoint))
    return Path(checkpoint)
