"""Dense probes: what patches hold for segmentation and depth, with and without a register.

Paper and place: arXiv 2506.08010, Tables 2, 9 and 13.
Question: does a linear layer read classes off the patches better once the outliers are gone?
Command: python -m analyses.paper.tab02_dense_probes --out OUT
Runtime: about 30 s on one CPU core.
Expect: on the planted ViT, photographs with a disc pasted in: no arm differs, since outliers stand on
few patches and a linear layer is told to ignore them.
In the paper: DINOv2 ViT-L/14 ADE20K mIoU 48.27, test-time register 49.13; NYU rmse .3876, .3774.
"""

from analyses._run import Findings, main
from analyses.paper._composites import Config, evaluated
from ttreg_interp.data.annotated import Mask
from ttreg_interp.evaluations.dense import SegmentationProbe
from ttreg_interp.metrics.dense_probes import DenseProbe


def analyse(config: Config) -> Findings:
    """Every arm on the same images."""
    protocol = SegmentationProbe(probe=DenseProbe(epochs=5, seeds=(0, 1)), folds=2)
    return evaluated(config, protocol, Mask, config.data, ["register", "random"])


if __name__ == "__main__":
    main(globals())
