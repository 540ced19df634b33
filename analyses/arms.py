"""Every arm on one model: what a test-time register costs, against its controls.

Question: how many images does a classifier lose when its register neurons are zeroed, replaced, or
moved into a register, and when as many random neurons are zeroed?
Place:    the causal table behind arXiv 2506.08010, section 3 and its rebuttal.
Command:  python -m analyses.arms --model timm:vit_tiny_patch16_224@model.safetensors \\
              --images FOLDER --labels FOLDER/labels.csv --neurons neurons.json --out OUT
Runtime:  about 5 minutes for a ViT-Ti, 300 images and 40 arms on two free cores.
Expect:   zeroing costs most, a register less, random neurons nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import ttreg_interp as tt
from ttreg_interp import interventions as act
from ttreg_interp.data.labels import read_labels
from ttreg_interp.metrics.classification import topk_correct
from ttreg_interp.metrics.intervals import controls_interval, mean_interval, paired_difference
from ttreg_interp.provenance import versions


@dataclass(frozen=True)
class Config:
    """What to run."""

    model: str
    """Model spec of a classifier."""
    images: Path
    """Folder of images."""
    labels: Path
    """CSV of file, class_index, name."""
    neurons: Path
    """Register neurons, from `ttreg find`."""
    out: Path
    """Folder for result.json and table.md."""
    n_controls: int = 20
    """Draws of matched random neurons."""
    n_fit: int = 64
    """Images, from the end of the list, on which means and k', v' are fitted."""
    limit: int | None = None
    """Use at most so many images."""
    batch_size: int = 25
    """Images of one forward pass."""
    seed: int = 0
    """Of controls, noise and intervals."""


def arms(
    model: tt.HookedViT, neurons: tt.NeuronSet, fit: list[Tensor], seed: int
) -> dict[str, act.Intervention]:
    """The arms of the table, by name; `fit` are pixels for means and k', v'."""
    last = max(layer for layer, _ in neurons)
    register = act.TestTimeRegister(neurons)
    zero = act.ZeroNeurons(neurons)
    return {
        "neurons zeroed": zero,
        "neurons at their mean": act.mean_neurons(model, neurons, fit),
        "neurons shuffled over tokens": act.ShuffleNeurons(neurons, seed=seed),
        "neurons replaced by noise": act.NoiseNeurons(neurons, seed=seed),
        **{f"{n} register{'s' * (n > 1)}": act.TestTimeRegister(neurons, n) for n in range(1, 7)},
        **{"4 registers, each with the value": act.TestTimeRegister(neurons, 4, assign="same")},
        "register, reference semantics": act.TestTimeRegister(neurons, semantics="reference"),
        f"register hidden before block {last + 1}": act.TestTimeRegister(
            neurons, visible_from_layer=last + 1
        ),
        **{
            f"register counting as {tau} keys": act.TestTimeRegister(neurons, multiplicity=tau)
            for tau in (2, 4, 8)
        },
        f"register hidden before block {last + 1}, counting as 4 keys": act.TestTimeRegister(
            neurons, visible_from_layer=last + 1, multiplicity=4
        ),
        "attention bias, neurons zeroed": zero + act.mean_attention_bias(model, register, fit),
        "token added, nothing moved": act.ExtraTokens(1),
    }


@torch.no_grad()
def run_arm(
    model: tt.HookedViT, pixels: Tensor, arm: act.Intervention, layer: int
) -> tuple[Tensor, Tensor]:
    """Logits, and max/median patch norm after `layer`, for every image of a batch."""
    with model.intervened(arm):
        logits, cache = model.run_with_cache(pixels, names_filter=f"blocks.{layer}.hook_resid_post")
    norms = cache["resid_post", layer][:, cache.layout.patches].norm(dim=-1)
    return logits, norms.amax(dim=1) / norms.median(dim=1).values


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    lines = [
        "| arm | top-1 % | against intact, points | max/median patch norm |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['arm']} | {r['top1']} | {r['difference']} | {r['ratio']:.2f} |" for r in rows]
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Run all arms on all images; write result.json and table.md."""
    model = tt.load(config.model)
    found = tt.RegisterNeurons.load(config.neurons)
    found.check_model(model)
    labels = read_labels(config.labels)
    batches = list(
        tt.images(config.images, limit=config.limit).batches(model.preprocess, config.batch_size)
    )
    fit = [torch.cat([batch.pixels for batch in batches])[-config.n_fit :]]
    chosen = {"intact": act.Empty(), **arms(model, found.neurons, fit, config.seed)}
    controls = {
        f"control {i}": act.ZeroNeurons(
            found.neurons.matched_random(config.seed + i, model.cfg.d_mlp)
        )
        for i in range(config.n_controls)
    }
    layer = model.cfg.n_layers - 2
    correct: dict[str, list[Tensor]] = {name: [] for name in (*chosen, *controls)}
    ratios: dict[str, list[Tensor]] = {name: [] for name in correct}
    for batch in tqdm(batches, desc="arms"):
        truth = torch.tensor([labels.of(path).index for path in batch.paths])
        for name, arm in {**chosen, **controls}.items():
            logits, ratio = run_arm(model, batch.pixels, arm, layer)
            correct[name].append(topk_correct(logits, truth))
            ratios[name].append(ratio)
    hits = {name: 100 * torch.cat(parts).double() for name, parts in correct.items()}
    ratio = {name: float(torch.cat(parts).mean()) for name, parts in ratios.items()}
    rows = [
        {
            "arm": name,
            "top1": str(mean_interval(hits[name], config.seed)),
            "difference": ""
            if name == "intact"
            else str(paired_difference(hits[name], hits["intact"], config.seed)),
            "ratio": ratio[name],
        }
        for name in chosen
    ]
    draws = [float(hits[name].mean()) for name in controls]
    rows.append(
        {
            "arm": f"matched random neurons zeroed, {len(draws)} draws",
            "top1": str(controls_interval(draws)),
            "difference": str(controls_interval([d - float(hits["intact"].mean()) for d in draws])),
            "ratio": sum(ratio[name] for name in controls) / len(draws),
        }
    )
    config.out.mkdir(parents=True, exist_ok=True)
    result = {
        "config": {key: str(value) for key, value in vars(config).items()},
        "neurons": found.neurons.to_dict(),
        "images": len(hits["intact"]),
        "layer_of_ratio": layer,
        "rows": rows,
        "versions": versions(),
    }
    (config.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (config.out / "table.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
