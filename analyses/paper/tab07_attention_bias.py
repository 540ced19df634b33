"""An attention bias instead of a register: classification with the register neurons zeroed.

Paper and place: arXiv 2506.08010, Table 7 and appendix A.2.
Question: do k' and v', one key and value a head, make up for what zeroing the register neurons costs?
Command: python -m analyses.paper.tab07_attention_bias --out OUT
Runtime: about 45 s on one CPU core.
Expect: on the planted ViT, crops of photographs against a stand-in for text: top-1 falls from about 94 %
to 30 % with the neurons zeroed, and comes back with the bias; random neurons zeroed cost nothing.
In the paper: OpenCLIP ViT-B/16 zero-shot 71.3; register neurons zeroed 55.6; attention bias 71.3.
"""

from pathlib import Path

from analyses._run import Findings, main
from analyses.paper._composites import measured, told
from analyses.paper._named import PROMPTS, STAND_IN, Config
from ttreg_interp.data.open import open_data
from ttreg_interp.evaluations.classification import Classification, ZeroShot

ARMS = ["zero", "bias", "register", "random"]


def analyse(config: Config) -> Findings:
    """By text, or where a classifier is given labelled images by its own head."""
    bench = config.bench
    labelled = (Path(config.images) / "labels.csv").is_file() and bool(config.images)
    if bench.model.parts.is_classifier and labelled and not config.data:
        data = open_data(f"labels:{config.images}").take(config.count, config.seed)
        arms = config.arms(bench.model, ARMS)
        return told(bench, measured(config, Classification(), bench.model, data, arms))
    model = config.speaking()
    arms = config.arms(model, ARMS)
    result = measured(config, ZeroShot(PROMPTS), model, config.named(), arms)
    return told(bench, result, preface=STAND_IN if bench.model.text is None else "")


if __name__ == "__main__":
    main(globals())
