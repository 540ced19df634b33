"""A register in the eye of a vision-language model: what it is given, and where its answer looks.

Paper and place: arXiv 2506.08010, section 5.4, Table 6, Fig. 6 and 32.
Question: once the vision tower has a register, dropped before the projector, does the language model see as
many tokens as ever, and does the answer's attention still go to the places of the outliers?
Command: python -m analyses.paper.tab06_vlm --out OUT
Runtime: about 20 s on one CPU core.
Expect: on the planted ViT as CLIP's tower of a LLaVA whose language model is random: as many visual tokens
as before, none of them an outlier; the answer's attention to the outliers' places falls from 2.4 times that
to others to about as much; zeroing the neurons changes the answer's first word far more than a register.
In the paper: LLaVA-Llama-3-8B, mean of eight benchmarks 46.2 with and without (HallusionBench 28.6, 29.4;
MMVet 33.4, 33.9; MMMU 40.4, 40.1; OCRBench 41.6, 41.3; MMStar 46.3, 46.4; MathVista 40.9, 41.3; AI2D 69.9,
69.4; MMBench 68.5, 68.0).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from analyses._bench import Bench, BenchConfig, _neurons, mean_where
from analyses._figures import sheet
from analyses._run import Findings, main
from analyses.paper._llava import Talker, talker
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import images
from ttreg_interp.discovery import FindConfig
from ttreg_interp.evaluations.vlm import answer_attention, registered
from ttreg_interp.hooked import weights_hash
from ttreg_interp.interventions import Empty, Intervention, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.testbed import photographs

BEFORE, AFTER, ZEROED, RANDOM = "intact", "register", "zero", "random"


@dataclass(frozen=True)
class Config(BenchConfig):
    """`testbed:planted`, or `hf:` and a LLaVA-style model of transformers."""

    limit: int = 16
    """At most so many images."""
    batch_size: int = 4
    """Images of one forward pass."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the language model got and did under one arm."""

    norms: Float[Tensor, "image patch"]
    """Of the tokens that enter the projector."""
    maps: Float[Tensor, "image grid_height grid_width"]
    """Attention from the token that answers to each of them, mean over layers and heads."""
    logits: Float[Tensor, "image word"]
    """Of the first word of the answer."""


def look(known: Talker, pictures: list[Image.Image], arm: Intervention, batch_size: int) -> Seen:
    """All pictures under one arm."""
    norms: list[Tensor] = []
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(pictures), batch_size):
        inputs = known.inputs(pictures[start : start + batch_size])
        with torch.no_grad(), registered(known.vlm, arm):
            watch = known.projector.register_forward_pre_hook(
                lambda module, args: norms.append(args[0].norm(dim=-1).float())
            )
            logits = known.vlm(**inputs).logits[:, -1].float()
            watch.remove()
            found.append((answer_attention(known.vlm, dict(inputs)), logits))
    maps, logits = (torch.cat(column) for column in zip(*found, strict=True))
    return Seen(torch.cat(norms), maps, logits)


def analyse(config: Config) -> Findings:
    """Every arm on the same pictures."""
    known = talker(config.model, config.image_size)
    pictures = _pictures(config)
    bench = _bench(config, known, pictures)
    arms = {
        BEFORE: Empty(),
        AFTER: TestTimeRegister(bench.neurons),
        ZEROED: ZeroNeurons(bench.neurons),
        RANDOM: ZeroNeurons(bench.random()),
    }
    seen = {name: look(known, pictures, arm, config.batch_size) for name, arm in arms.items()}
    before = seen[BEFORE]
    outlier = before.norms > bench.threshold
    numbers = {name: _numbers(one, before, outlier, config.seed) for name, one in seen.items()}
    tokens = sorted({one.norms.shape[1] for one in seen.values()})
    layout = bench.layout().of_length(bench.layout().n_prefix + tokens[0])
    first = list(bench.pixels[:3])
    columns = {
        f"{what}, {name}": (layout, _padded(layout.n_prefix, values))
        for name in (BEFORE, AFTER)
        for what, values in (("norms", seen[name].norms), ("answer's attention", seen[name].maps))
    }
    headline = (
        f"visual tokens {' or '.join(map(str, tokens))} under every arm; largest / median norm "
        + ", ".join(f"{name} {found['largest norm']}" for name, found in numbers.items())
        + "; answer's attention to an outlier's place / to another "
        + ", ".join(f"{name} {found['attention']}" for name, found in numbers.items())
    )
    facts = {**bench.facts, "visual_tokens": tokens}
    return Findings(
        headline, _words(numbers, tokens), numbers, {"maps": sheet(first, columns)}, facts
    )


def _padded(prefix: int, values: Tensor) -> Float[Tensor, "image token"]:
    flat = values.flatten(1)
    return torch.cat((torch.zeros(len(flat), prefix), flat), dim=1)


def _numbers(
    seen: Seen, before: Seen, outlier: Bool[Tensor, "image patch"], seed: int
) -> dict[str, Interval]:
    """Per image; the change of the answer is the KL divergence from the intact model's first word."""
    flat = seen.maps.flatten(1)
    some = outlier.any(dim=1)
    ratio = mean_where(flat, outlier) / mean_where(flat, ~outlier)[some]
    told, now = before.logits.log_softmax(dim=1), seen.logits.log_softmax(dim=1)
    return {
        "largest norm": mean_interval(
            seen.norms.amax(dim=1) / seen.norms.median(dim=1).values, seed
        ),
        "attention": mean_interval(ratio, seed),
        "KL": mean_interval((told.exp() * (told - now)).sum(dim=1).clamp_min(0), seed),
    }


def _words(numbers: Mapping[str, Mapping[str, Interval]], tokens: list[int]) -> str:
    lines = [
        "| arm | largest / median norm | attention, outliers' places / others | KL of the first word |"
    ]
    lines += ["| --- | --- | --- | --- |"]
    lines += [f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in numbers.items()]
    return (
        f"The projector is given {tokens[0]} tokens an image under every arm: the register is dropped before "
        "it. Norms are those of what enters the projector; attention goes from the token that answers, mean "
        "over layers and heads.\n\n"
        + "\n".join(lines)
        + "\n\nThe eight benchmarks are VLMEvalKit's; "
        "docs/how-to/evaluate.md (Vision-language models) says how to hand the model over."
    )


def _pictures(config: Config) -> list[Image.Image]:
    if not config.images:
        return list(photographs(config.image_size or 224).values())[: config.limit]
    return [
        read_image(path)
        for path in images(config.images, limit=config.limit, seed=config.seed).paths
    ]


def _bench(config: Config, known: Talker, pictures: list[Image.Image]) -> Bench:
    """The tower on these pictures."""
    pixels = torch.cat([known.inputs([picture])["pixel_values"] for picture in pictures])
    options = FindConfig(batch_size=config.batch_size, seed=config.seed, evidence=False)
    chosen, by = known.truth, "planted"
    if chosen is None or config.neurons:
        chosen, by = _neurons(known.tower, config.neurons, None, pixels, options)
    origin: dict[str, Any] = {
        "model": config.model,
        "weights_sha256": weights_hash(known.vlm),
        "images": f"{len(pixels)} of {config.images or 'the photographs of the testbed'}",
        "n_images": len(pixels),
        "images_sha256": sha256(pixels.numpy().tobytes()).hexdigest(),
        "image_size": list(pixels.shape[-2:]),
        "neurons": chosen.to_dict(),
        "neurons_from": by,
    }
    return Bench(known.tower, chosen, pixels, None, None, origin, config.batch_size, config.seed)


if __name__ == "__main__":
    main(globals())
