"""Train testbed language models and write down what happened: `python -m ttreg_interp.testbed.language_train`.

The shipped checkpoint is `--seeds 2 --out ttreg_interp/testbed/language_model`; histories of other
seeds, kernels and optimisers go to `--history FILE`, one JSON object a line.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ttreg_interp.provenance import versions
from ttreg_interp.testbed.language import LanguageConfig, train
from ttreg_interp.testbed.language_arms import measure_arms
from ttreg_interp.testbed.language_task import BackcopyTask

TEXTS, TEXT_SEED = 256, 99
"""Texts that the arms are compared on, which no training sees."""


def run(config: LanguageConfig) -> tuple[Any, dict[str, Any]]:
    """A trained model and its record: configuration, history, seconds, versions.

    With plain softmax also what `measure_arms` says of the trained model.
    """
    start = time.process_time()
    model, history = train(config)
    record = {
        "config": asdict(config),
        "history": [measures.to_dict() for measures in history],
        "cpu_seconds": round(time.process_time() - start, 1),
        "versions": versions(),
        "machine": platform.machine(),
    }
    if config.kernel == "softmax":
        ids = config.task.sample(TEXTS, torch.Generator().manual_seed(TEXT_SEED))
        arms = measure_arms(model, config.task, ids)
        record["arms"] = {name: one.to_dict() for name, one in arms.items()}
    return model, record


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kernels", nargs="+", default=["softmax"])
    parser.add_argument("--optimisers", nargs="+", default=["adam"])
    parser.add_argument("--backcopy", action="store_true", help="the positional variant")
    parser.add_argument("--steps", type=int, default=LanguageConfig.steps)
    parser.add_argument("--learning-rate", type=float, help="absent: the optimiser's usual one")
    parser.add_argument("--history", type=Path, help="append one JSON object a run to this file")
    parser.add_argument("--out", type=Path, help="keep the last model here, with its history")
    given = parser.parse_args()
    base = LanguageConfig(
        task=BackcopyTask(in_context=not given.backcopy),
        steps=given.steps,
        learning_rate=given.learning_rate,
    )
    for kernel in given.kernels:
        for optimiser in given.optimisers:
            for seed in given.seeds:
                config = replace(base, kernel=kernel, optimiser=optimiser, seed=seed)
                model, record = run(config)
                if given.history:
                    with given.history.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                if given.out:
                    model.save_pretrained(given.out)
                    text = json.dumps(record, indent=1)
                    (given.out / "history.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
