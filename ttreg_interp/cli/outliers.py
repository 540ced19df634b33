"""`ttreg outliers`: where, how many, how strong, since which layer; position or content."""

from dataclasses import dataclass, field

from ttreg_interp.cli.common import ImageOptions, ModelOptions, emit
from ttreg_interp.discovery.config import FindConfig


@dataclass(frozen=True, kw_only=True)
class Outliers(ModelOptions, ImageOptions):
    """Say whether a model has outlier tokens on some images: where, how many, how strong, since
    which layer, and whether position or content places them."""

    config: FindConfig = field(default_factory=FindConfig)
    """How to look."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Look, print."""
        from ttreg_interp.discovery import find_outliers

        report = find_outliers(self.load(), self.open(), self.config, progress=True)
        emit(report.to_dict(), self.json, str(report))
        return 0
