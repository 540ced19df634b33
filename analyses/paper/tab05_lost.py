"""Unsupervised object discovery (LOST), with and without a register.

Paper and place: arXiv 2506.08010, Tables 5 and 11.
Question: does a register let LOST find more objects?
Command: python -m analyses.paper.tab05_lost --out OUT
Runtime: about 30 s on one CPU core.
Expect: on the planted ViT, photographs with a disc pasted in: features are those of random weights, so
corloc is low for every arm; the details say how often the box is the whole image.
In the paper: DINOv2 ViT-L/14 VOC07 32.2, test-time register 53.8; OpenCLIP ViT-B/16 30.8, 30.9.
"""

from analyses._run import Findings, main
from analyses.paper._composites import Config, evaluated, told
from ttreg_interp.data.annotated import Objects
from ttreg_interp.evaluations.lost import ObjectDiscovery


def analyse(config: Config) -> Findings:
    """Every arm on the same images."""
    protocol = ObjectDiscovery(last_layers=2, biases=(0.0, -0.25, -0.5))
    arms = ["register", "random"]
    return told(config.bench, evaluated(config, protocol, config.annotated(Objects), arms))


if __name__ == "__main__":
    main(globals())
