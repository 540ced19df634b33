"""Zero-shot classification, with and without a register.

Paper and place: arXiv 2506.08010, Table 3.
Question: does a register change which text an image is nearest to?
Command: python -m analyses.paper.tab03_zero_shot --out OUT
Runtime: about 30 s on one CPU core.
Expect: on the planted ViT, crops of photographs against a stand-in for text (the mean embedding of other
crops): top-1 about 94 %, and the same with a register and with random neurons moved to one.
In the paper: OpenCLIP ImageNet top-1, intact and test-time register: ViT-L/14 76.4, 76.4; ViT-B/16 71.3,
71.3.
"""

from analyses._run import Findings, main
from analyses.paper._composites import measured, told
from analyses.paper._named import PROMPTS, STAND_IN, Config
from ttreg_interp.evaluations.classification import ZeroShot


def analyse(config: Config) -> Findings:
    """Every arm on the same images."""
    model = config.speaking()
    arms = config.arms(model, ["register", "random-register"])
    result = measured(config, ZeroShot(PROMPTS), model, config.named(), arms)
    return told(config.bench, result, preface=STAND_IN if config.bench.model.text is None else "")


if __name__ == "__main__":
    main(globals())
