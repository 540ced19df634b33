"""Does it matter what a register holds? It is fixed to its mean over images.

Paper and place: arXiv 2402.17762 (Sun et al.), section 5 and Table 5 (Fix-Reg-Mean); arXiv 2505.05892 on
the image dependence of registers, before and after LayerNorm.
Question: how alike is the register in different images, before and after the next norm, and what does
the model lose when the register is the same vector in every image, in every block?
Command: python -m analyses.paper.massive_fixed_register --out OUT
Runtime: about 15 s on one CPU core.
Expect: on the planted ViT the register is alike in all images (cosine above 0.99 behind the planted
neurons), and fixing it changes the output by less than 0.05; a register of zeros changes it by more than
0.5.
In the paper: Fix-Reg-Mean on trained registers, top-1: S 81.9 to 81.7, B 84.8 to 85.0, L 86.3 to 86.2,
g 87.0 to 87.0. Registers of giant: cosine .9989 between images before LayerNorm.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import by_layer, curve, panels
from analyses._run import Findings, main
from ttreg_interp.interventions import (
    Empty,
    Intervention,
    PatchActivation,
    TestTimeRegister,
    mean_activations,
    mean_trained_registers,
)
from ttreg_interp.metrics.arm_metrics import (
    KL,
    Cosine,
    MaxOverMedian,
    RelativeChange,
    SameTop1,
    Top1,
)
from ttreg_interp.metrics.compare import compare
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.norms import massive_entries
from ttreg_interp.metrics.similarity import mean_cosine_to_others

FIXED, EMPTY = "register fixed to its mean", "register fixed to zero"


@dataclass(frozen=True)
class Config(BenchConfig):
    """Means over half of the images; everything is measured on the other half."""


def fixed(bench: Bench, register: TestTimeRegister, rows: list[Tensor]) -> Intervention:
    """The register's row is `rows[l]` after every block l; nothing of the image is left in it."""
    writes = [
        PatchActivation(f"blocks.{layer}.hook_resid_post", row, tokens="test_time_registers")
        for layer, row in enumerate(rows)
    ]
    return reduce(add, writes, register)


def register_means(bench: Bench, register: TestTimeRegister, pixels: Tensor) -> list[Tensor]:
    """Mean residual of the register after every block."""
    row = bench.layout(register).test_time_registers.start
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(bench.last + 1)]
    with bench.model.intervened(register):
        means = mean_activations(
            bench.model,
            pixels.split(bench.batch_size),
            dict.fromkeys(names, lambda resid: resid[:, row]),
        )
    return [means[name] for name in names]


def states(
    bench: Bench, arm: Intervention, row: int
) -> dict[str, Float[Tensor, "layer image d_model"]]:
    """One row after every block but the last, as it is and after the next block's norm.

    The norm's gain belongs to it: it is what makes the few huge dimensions small.
    """
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(bench.last)]
    found = bench.collect({name: (name, lambda resid: resid[:, row]) for name in names}, arm)
    raw = [found[name] for name in names]
    blocks = bench.model.blocks[1:]
    normed = [block.ln1(state).detach() for block, state in zip(blocks, raw, strict=True)]
    return {"raw": torch.stack(raw), "norm": torch.stack(normed)}


def massive(bench: Bench, arm: Intervention, rows: slice) -> list[Interval]:
    """Massive activations at some rows, by block: of all tokens' entries, those at these."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(bench.last + 1)]

    def count(resid: Tensor) -> Tensor:
        return massive_entries(resid)[:, rows].sum(dim=(1, 2))

    found = bench.collect({name: (name, count) for name in names}, arm)
    return [mean_interval(found[name], bench.seed) for name in names]


def analyse(config: Config) -> Findings:
    """Image dependence by block; the arms."""
    bench, half = config.bench, len(config.bench.pixels) // 2
    register = TestTimeRegister(bench.neurons)
    row = bench.layout(register).test_time_registers.start
    found = states(bench, register, row)
    rows = {"register, before the norm": found["raw"], "register, after it": found["norm"]}
    if bench.layout().n_cls:
        cls = states(bench, register, 0)
        rows |= {"[CLS], before the norm": cls["raw"], "[CLS], after it": cls["norm"]}
    alike = {
        name: [mean_interval(mean_cosine_to_others(block), config.seed) for block in blocks]
        for name, blocks in rows.items()
    }
    means = register_means(bench, register, bench.pixels[half:])
    arms: dict[str, Intervention] = {
        "register": register,
        FIXED: fixed(bench, register, means),
        EMPTY: fixed(bench, register, [torch.zeros_like(mean) for mean in means]),
    }
    if bench.layout().n_trained_registers:
        batches = bench.pixels[half:].split(config.batch_size)
        arms["trained registers fixed to their mean"] = mean_trained_registers(bench.model, batches)
    labels = None if bench.labels is None else bench.labels[:half]
    metrics = [RelativeChange(), Cosine(), MaxOverMedian(layer=bench.outliers.detect_layer)]
    if bench.model.parts.is_classifier:
        metrics += [KL(), SameTop1(), *([] if labels is None else [Top1()])]
    table = compare(
        bench.model, bench.pixels[:half], arms, metrics, config.batch_size, labels, config.seed
    )
    counted = {
        "register": massive(bench, register, slice(row, row + 1)),
        "patches, with a register": massive(bench, register, bench.layout(register).patches),
        "patches, intact": massive(bench, Empty(), bench.layout().patches),
    }
    figure, axes = panels(1, 1, 2.2, 4.4)
    for place, (name, values) in enumerate(alike.items()):
        curve(axes[0, 0], values, range(len(values)), place, name)
    axes[0, 0].set(ylabel="cosine between images", ylim=(None, 1.02))
    by_layer(axes[0, 0])
    axes[0, 0].legend()
    last = {name: values[-1] for name, values in alike.items()}
    change = {name: table[name, "relative change"].value for name in arms}
    headline = (
        f"register between images: cosine {last['register, before the norm']} before the norm, "
        f"{last['register, after it']} after; change of the output: register {change['register']}, fixed "
        f"{change[FIXED]}, zero {change[EMPTY]}"
    )
    words = (
        f"After block {bench.last - 1}, cosine between images: "
        + ", ".join(f"{name} {value}" for name, value in last.items())
        + ". Against the intact model the "
        f"output changes by {change['register']} with a register, by {change[FIXED]} with one that is the "
        f"same in every image (mean of {len(bench.pixels) - half} other images, after every block) and by "
        f"{change[EMPTY]} with one of zeros. Massive activations after block {bench.outliers.detect_layer}: "
        + ", ".join(f"{name} {v[bench.outliers.detect_layer]}" for name, v in counted.items())
        + f" an image.\n\n{table}"
    )
    numbers = {"cosine_between_images": alike, "arms": table.to_dict(), "massive": counted}  # fmt: skip
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
