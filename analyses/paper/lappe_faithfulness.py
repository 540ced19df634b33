"""Is a [CLS] attention map faithful, before and after the test-time register?

Paper and place: arXiv 2505.05892 (Lappe and Giese), Fig. 2 to 6, on trained registers; for a test-time
register nobody has reported it.
Question: how much of the attention of [CLS] in the last block goes to registers, outliers and other
patches; does what the patches give make up what [CLS] gets (cosine, CKA, one-shot classification); and
how much of [CLS] passes the block by?
Command: python -m analyses.paper.lappe_faithfulness --out OUT
Runtime: about 25 s on one CPU core.
Expect: on the planted ViT outliers hold over 0.9 of the attention before, the register after; the other
patches' part stays what it was, a small share in either.
In the paper: DINOv2 with registers: patch-only [CLS] has CKA near 1 in S and B, low in g; one image with
a clean map has cosine -.0092 between its patch part and the full output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import BLUE, PAGE, RED, bars, by_layer, curve
from analyses._run import Findings, main
from analyses.paper._cls import OUTLIERS, PATCHES, REGISTERS, SELF, ClsParts, cls_parts, groups
from analyses.paper._crops import crops
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    Intervention,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.metrics.artifacts import attention_norm_correlation
from ttreg_interp.metrics.cka_interval import cka_interval
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.similarity import cosine
from ttreg_interp.metrics.trace import trace

ALL_PATCHES = "all patches"


@dataclass(frozen=True)
class Config(BenchConfig):
    """The last block, taken apart under every arm."""

    one_shot: bool = True
    """Also classify: one crop of an image to train on, another to test."""


def arms(bench: Bench) -> dict[str, Intervention]:
    """Before, after, and two controls."""
    return {
        "intact": Empty(),
        "test-time register": TestTimeRegister(bench.neurons),
        "neurons zeroed": ZeroNeurons(bench.neurons),
        "token added, nothing moved": ExtraTokens(),
    }


def attended(parts: ClsParts) -> dict[str, Float[Tensor, "image d_model"]]:
    """What attention gives to [CLS] by group; groups without tokens are left out."""
    found = {
        ALL_PATCHES: parts.parts[OUTLIERS] + parts.parts[PATCHES],
        "other patches only": parts.parts[PATCHES],
        "outliers only": parts.parts[OUTLIERS],
        "registers only": parts.parts[REGISTERS],
        "[CLS] itself only": parts.parts[SELF],
    }
    return {name: part for name, part in found.items() if bool((part.norm(dim=1) > 0).all())}


def split(parts: ClsParts, seed: int) -> dict[str, Interval]:
    """Shares of the attention to registers and patches, [CLS] itself left out; they add up to 1."""
    total = parts.attention[REGISTERS] + parts.attention[OUTLIERS] + parts.attention[PATCHES]
    return {
        name: mean_interval(parts.attention[name] / total, seed)
        for name in (REGISTERS, OUTLIERS, PATCHES)
    }


def likeness(a: Tensor, b: Tensor, seed: int) -> dict[str, Any]:
    """Cosine by image and CKA over images; CKA is None where one of them is a constant."""
    try:
        cka = cka_interval(a, b)
    except DataError:
        cka = None
    return {"cosine": mean_interval(cosine(a, b), seed), "cka": cka}


def one_shot(views: Bench, arm: Intervention, seed: int) -> dict[str, dict[str, Interval]]:
    """Nearest image by cosine: learnt from the full output on one crop, tested by part on another.

    `views` holds two crops of every image, one after the other.

    'as it is': the part stands for the full output, as in the paper. 'centred': its own mean over the
    training crops is put in place of the full output's, so that a constant that the part lacks does
    not count.
    """
    parts = cls_parts(views, arm, views.last)
    train, test = slice(0, None, 2), slice(1, None, 2)
    bank = parts.full[train]
    truth = torch.arange(len(bank))
    centre = bank.mean(dim=0)
    found = {}
    for name, part in {"full": parts.full, **attended(parts)}.items():
        queries = {"as it is": part[test] - centre, "centred": part[test] - part[train].mean(dim=0)}
        found[name] = {
            how: mean_interval(
                (normalised(values) @ normalised(bank - centre).T).argmax(dim=1) == truth, seed
            )
            for how, values in queries.items()
        }
    return found


def normalised(rows: Float[Tensor, "image d_model"]) -> Float[Tensor, "image d_model"]:
    """Unit vectors."""
    return torch.nn.functional.normalize(rows, dim=1)


def measure(config: Config, bench: Bench, views: Bench, arm: Intervention) -> dict[str, Any]:
    """Everything about one arm."""
    parts = cls_parts(bench, arm, bench.last)
    attended_parts = attended(parts)
    found: dict[str, Any] = {
        "attention": split(parts, config.seed),
        "attention_to_itself": mean_interval(parts.attention[SELF], config.seed),
        "map_and_what_patches_give": mean_interval(
            attention_norm_correlation(parts.by_patch, parts.given), config.seed
        ),
        "cls_with_final_by_block": [
            mean_interval(cosine(block, parts.final), config.seed)
            for block in cls_by_block(bench, arm)
        ],
        "with_full_output": {
            name: likeness(part, parts.full, config.seed) for name, part in attended_parts.items()
        },
        "size": {
            name: mean_interval(part.norm(dim=1) / parts.full.norm(dim=1), config.seed)
            for name, part in attended_parts.items()
        },
        "skip_over_attention": mean_interval(
            parts.skip.norm(dim=1) / parts.added.norm(dim=1), config.seed
        ),
        "with_final_cls": {
            name: likeness(part, parts.final, config.seed)
            for name, part in {"skip only": parts.skip, "attention only": parts.added}.items()
        },
    }
    if config.one_shot:
        found["one_shot"] = one_shot(views, arm, config.seed)
    return found


def cls_by_block(bench: Bench, arm: Intervention) -> list[Float[Tensor, "image d_model"]]:
    """[CLS] after every block."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(bench.last + 1)]
    found = bench.collect({name: (name, lambda resid: resid[:, 0]) for name in names}, arm)
    return [found[name] for name in names]


def sinks_by_layer(bench: Bench, arm: Intervention) -> Float[Tensor, "layer image"]:
    """Share of registers and outliers in what [CLS] gives to registers and patches."""
    chosen = groups(bench, arm)
    sinks, everything = chosen[REGISTERS] | chosen[OUTLIERS], ~chosen[SELF]
    found = []
    with bench.model.intervened(arm):
        for i, batch in enumerate(bench.pixels.split(bench.batch_size)):
            rows = slice(i * bench.batch_size, i * bench.batch_size + len(batch))
            attention = trace(bench.model, batch).attention.mean(dim=2)
            found.append((attention * sinks[rows]).sum(-1) / (attention * everything[rows]).sum(-1))
    return torch.cat(found, dim=1)


def draw(numbers: Mapping[str, Any], by_block: Mapping[str, list[Interval]]) -> Figure:
    """Attention by block; what the parts are worth."""
    figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    for place, (name, values) in enumerate(by_block.items()):
        curve(axes[0], values, range(len(values)), place, name)
    axes[0].set(title="attention on registers and outliers", ylim=(-0.02, 1.02))
    by_layer(axes[0])
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=5, ncols=2)
    shown = [
        (f"{part}, {when}", color, values)
        for when, color, arm in (("before", BLUE, "intact"), ("after", RED, "test-time register"))
        for part, values in numbers[arm]["with_full_output"].items()
    ]
    for axis, name in zip(axes[1:], ("cosine", "cka"), strict=True):
        rows = {label: values[name] for label, _, values in shown}
        bars(axis, rows, [color for _, color, _ in shown])
        axis.set(title=f"{name.replace('cka', 'CKA')} with the full output", xlim=(None, 1.05))
    axes[2].set_yticklabels([])
    return figure


def table(numbers: Mapping[str, Any]) -> str:
    """One line for every arm and part."""
    lines = [
        "| arm | part | share of attention | size / full | cosine with full | CKA with full | one-shot as it is | one-shot centred |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shares = {"other patches only": PATCHES, "outliers only": OUTLIERS, "registers only": REGISTERS}
    for arm, found in numbers.items():
        shot = found.get("one_shot", {})
        for part, values in found["with_full_output"].items():
            share = found["attention"].get(shares.get(part, ""), "")
            cka = "constant" if values["cka"] is None else values["cka"]
            accuracy = [shot[part][how] if part in shot else "" for how in ("as it is", "centred")]
            lines.append(
                f"| {arm} | {part} | {share} | {found['size'][part]} | {values['cosine']} | {cka} "
                f"| {accuracy[0]} | {accuracy[1]} |"
            )
        if shot:
            lines.append(f"| {arm} | everything | 1 | 1 | 1 | 1 | {shot['full']['as it is']} | |")
    return "\n".join(lines)


def analyse(config: Config) -> Findings:
    """All arms, and what of the patches' part the register leaves alone."""
    bench = config.bench
    chosen = arms(bench)
    pairs = crops(bench, len(bench.pixels), 2)
    views = replace(bench, pixels=pairs.pixels, labels=None)
    numbers = {name: measure(config, bench, views, arm) for name, arm in chosen.items()}
    parts = {
        name: cls_parts(bench, chosen[name], bench.last)
        for name in ("intact", "test-time register")
    }
    before, after = parts.values()
    kept = {
        "ordinary patches": mean_interval(cosine(before.parts[PATCHES], after.parts[PATCHES]), config.seed),
        "full output": mean_interval(cosine(before.full, after.full), config.seed),
        "sinks": mean_interval(cosine(before.parts[OUTLIERS], after.parts[REGISTERS]), config.seed)
        if bench.is_outlier.any(dim=1).all() else None,
    }  # fmt: skip
    by_block = {
        name: [mean_interval(row, config.seed) for row in sinks_by_layer(bench, arm)]
        for name, arm in chosen.items()
    }
    intact, register = numbers["intact"], numbers["test-time register"]
    patch_before, patch_after = (
        found["with_full_output"]["other patches only"] for found in (intact, register)
    )
    headline = (
        f"share of attention on outliers {intact['attention'][OUTLIERS]} before, on the register "
        f"{register['attention'][REGISTERS]} after; cosine of the ordinary patches' part with the full "
        f"output {patch_before['cosine']} before, {patch_after['cosine']} after"
    )
    words = (
        f"Last block, {len(bench.pixels)} images. Of what [CLS] attends to besides itself, outlier patches "
        f"hold {intact['attention'][OUTLIERS]} before, and the register {register['attention'][REGISTERS]} "
        f"after, when the former outliers hold {register['attention'][OUTLIERS]}; ordinary patches hold "
        f"{intact['attention'][PATCHES]} and {register['attention'][PATCHES]}. A map drawn over the "
        "patches leaves the register's share out. What the ordinary patches give "
        f"has cosine {patch_before['cosine']} with the whole output of attention before and "
        f"{patch_after['cosine']} after (CKA {patch_before['cka']} and {patch_after['cka']}); between "
        f"before and after that part itself has cosine {kept['ordinary patches']}. "
        "Over the patches the map's rank correlation with the size of what each gives is "
        f"{intact['map_and_what_patches_give']} before and {register['map_and_what_patches_give']} after. "
        f"[CLS] as it enters the block is {intact['skip_over_attention']} times as long as what attention "
        f"adds before, {register['skip_over_attention']} times after. CKA is debiased, with jackknife "
        "intervals; the full output is the sum over all tokens, [CLS] itself included, without the bias; "
        "one-shot is by image "
        f"(two crops each).\n\n{table(numbers)}"
    )
    everything = {"arms": numbers, "before_and_after": kept, "sinks_by_block": by_block}
    return Findings(headline, words, everything, {"figure": draw(numbers, by_block)}, bench.facts)


if __name__ == "__main__":
    main(globals())
