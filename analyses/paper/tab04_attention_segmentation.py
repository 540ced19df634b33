"""Attention maps as segmentations, with and without a register.

Paper and place: arXiv 2506.08010, Table 4.
Question: does the [CLS] attention of the last layer follow objects better with a register?
Command: python -m analyses.paper.tab04_attention_segmentation --out OUT
Runtime: about 20 s on one CPU core.
Expect: on the planted ViT, photographs with a disc pasted in: the map of the intact model is a few
outliers; zeroing the neurons and a register change it, random neurons do not.
In the paper: DINOv2 ViT-L/14 mIoU 38.3, test-time register 38.9; OpenCLIP ViT-B/16 34.7, 40.0.
"""

from analyses._run import Findings, main
from analyses.paper._composites import Config, evaluated, told
from ttreg_interp.data.annotated import Mask
from ttreg_interp.evaluations.maps import AttentionSegmentation


def analyse(config: Config) -> Findings:
    """Every arm on the same images."""
    arms = ["register", "zero", "random"]
    return told(
        config.bench, evaluated(config, AttentionSegmentation(), config.annotated(Mask), arms)
    )


if __name__ == "__main__":
    main(globals())
