"""Typographic attacks: outliers moved onto a written word.

Paper and place: arXiv 2506.08010, section 5.3, Table 12 and author response.
Question: how often does a word written into an image beat what the image shows, and does it still once
the register neurons' activation stands on the word's patches?
Command: python -m analyses.paper.tab12_typographic --out OUT
Runtime: about 45 s on one CPU core.
Expect: on the planted ViT: a model that cannot read is not attacked, so that the word wins in few images
under every arm, and edits of the text find nothing to mend.
In the paper: OpenAI CLIP ViT-B/16 on RTA-100, attack success 50.5; text patches filled 7.6; register
neurons moved onto the text 7.5, random neurons 50.5; register neurons zeroed 48.4, random values 48.2.
"""

from pathlib import Path

from analyses._run import Findings, main
from analyses.paper._composites import measured, told
from analyses.paper._named import STAND_IN, Config
from ttreg_interp.data.attacks import Typography, attacked
from ttreg_interp.data.open import open_data
from ttreg_interp.evaluations.typographic import TypographicAttack

ARMS = ["text-move", "text-random", "text-erase", "zero", "noise"]


def analyse(config: Config) -> Findings:
    """Every arm on the same attacked images."""
    bench = config.bench
    if config.data.startswith(("rta100:", "attacked+")):
        model, data = bench.model, open_data(config.data).take(config.count, config.seed)
    elif bench.model.parts.is_classifier and (Path(config.images) / "labels.csv").is_file():
        labelled = open_data(f"labels:{config.images}").take(config.count, config.seed)
        model, data = bench.model, attacked(labelled, how=Typography(height=0.2))
    else:
        model, data = config.speaking(), attacked(config.named(), how=Typography(height=0.2))
    stands_in = model is not bench.model
    result = measured(config, TypographicAttack(), model, data, config.arms(model, ARMS))
    return told(bench, result, preface=STAND_IN if stands_in else "")


if __name__ == "__main__":
    main(globals())
