"""`ttreg outliers`: where, how many, how strong, since which layer; position or content."""

from dataclasses import dataclass, field
from pathlib import Path

from ttreg_interp.cli.common import ImageOptions, ModelOptions, emit
from ttreg_interp.discovery.config import FindConfig


@dataclass(frozen=True, kw_only=True)
class Outliers(ModelOptions, ImageOptions):
    """Say whether a model has outlier tokens on some images: where, how many, how strong, since
    which layer, and whether position or content places them.

    --images also takes hf:NAME:SPLIT and a pattern of tars.
    """

    attention: bool = False
    """Also look for patches that draw attention without being long, which no norm tells; slower."""
    plot: Path | None = None
    """Where to save a picture of the norms by layer."""
    config: FindConfig = field(default_factory=FindConfig)
    """How to look."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Look, print."""
        from ttreg_interp.discovery import find_attention_artefacts, find_outliers

        model, images = self.load(), self.open()
        report = find_outliers(model, images, self.config, progress=True)
        body, texts = report.to_dict(), [str(report)]
        if self.plot is not None:
            report.plot(self.plot)
        if self.attention:
            artefacts = find_attention_artefacts(model, images, self.config, progress=True)
            body["attention"] = artefacts.to_dict()
            texts.append(f"\n{artefacts}")
        emit(body, self.json, *texts)
        return 0
