"""Register neurons found at one resolution, used at others.

Paper and place: arXiv 2506.08010, appendix A.4 (one resolution only); asked in issues of the field.
Question: do the neurons found at the model's own size also make the outliers of smaller and larger
images, with interpolated position embeddings and the same threshold?
Command: python -m analyses.paper.sweep_resolution --out OUT
Runtime: about 40 s on one CPU core.
Expect: on the planted ViT a register leaves no outliers at any size; random neurons leave all.
In the paper: not reported.
"""

import copy
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import interpolate

from analyses._bench import Bench, BenchConfig
from analyses._figures import panels
from analyses._run import Findings, main
from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked import HookedViT, load
from ttreg_interp.interventions import Empty, Intervention, TestTimeRegister
from ttreg_interp.metrics.intervals import mean_interval


@dataclass(frozen=True)
class Config(BenchConfig):
    """Sizes as multiples of the model's own."""

    n_images: int = 8
    """The first so many images."""
    scales: tuple[float, ...] = (0.75, 1.0, 1.5, 2.0)
    """Height and width over the model's own; rounded to whole patches."""


def resized(bench: Bench, size: tuple[int, int]) -> HookedViT:
    """The same weights at another size.

    Raises:
        UnsupportedModelError: an embedded model whose library cannot interpolate.
    """
    if bench.planted is None:
        return load(str(bench.model.spec), image_size=size)
    module = copy.deepcopy(bench.planted.module)
    if bench.planted.config.layout != "timm":
        raise UnsupportedModelError(
            "Only timm's ViT interpolates its position embeddings in place."
        )
    module.set_input_size(img_size=size)  # type: ignore[operator]
    return HookedViT.wrap(module)


def outliers(model: HookedViT, bench: Bench, pixels: Tensor, arm: Intervention) -> Tensor:
    """How many an image, at the threshold of the model's own size."""
    at = replace(bench, model=model, pixels=pixels)
    patches = at.layout(arm).patches
    read = {"n": (bench.resid, lambda resid: resid[:, patches].norm(dim=-1))}
    return (at.collect(read, arm)["n"] > bench.threshold).sum(dim=1).double()


def analyse(config: Config) -> Findings:
    """Every size, intact, with a register, with random neurons moved."""
    bench = config.bench.part(slice(0, config.n_images))
    arms = {
        "intact": Empty(),
        "register": TestTimeRegister(bench.neurons),
        "random neurons moved": TestTimeRegister(bench.random()),
    }
    numbers: dict[str, dict] = {}
    for scale in config.scales:
        sizes = zip(bench.pixels.shape[-2:], bench.model.parts.patch_size, strict=True)
        size = tuple(round(scale * side / patch) * patch for side, patch in sizes)
        model = bench.model if scale == 1 else resized(bench, size)  # type: ignore[arg-type]
        pixels = interpolate(bench.pixels, size=size, mode="bicubic", antialias=True)
        found = {name: outliers(model, bench, pixels, arm) for name, arm in arms.items()}
        some = found["intact"] > 0
        numbers[f"{size[0]} x {size[1]}"] = {
            "images_with_outliers": int(some.sum()),
            **{name: mean_interval(values, config.seed) for name, values in found.items()},
            "left": mean_interval(found["register"][some] / found["intact"][some], config.seed)
            if int(some.sum()) > 1 else None,
        }  # fmt: skip
    figure, axes = panels(1, 1, 1.9, 4.2)
    for place, (arm, color) in enumerate(zip(arms, ("#0072B2", "#009E73", "#7F7F7F"), strict=True)):
        for at, entry in enumerate(numbers.values()):
            value, x = entry[arm], at + 0.15 * (place - 1)
            axes[0, 0].plot([x, x], [value.low, value.high], color=color)
            axes[0, 0].plot(
                x, value.estimate, "osD"[place], color=color, label=arm if at == 0 else None
            )
    axes[0, 0].set(
        xticks=range(len(numbers)),
        xticklabels=list(numbers),
        ylabel="outliers an image",
        xlabel="image size in pixels",
    )
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    each = [f"{size}: {entry['intact']} and {entry['register']}" for size, entry in numbers.items()]
    headline = f"outliers an image, intact to register; {'; '.join(each)}"
    words = (
        f"The neurons of {bench.pixels.shape[-2]} x {bench.pixels.shape[-1]} pixels, moved to a register at "
        f"other sizes (threshold {bench.threshold:.4g} throughout, {len(bench.pixels)} images): outliers an "
        f"image, intact and with the register: {'; '.join(each)}. With as many random neurons moved: "
        + ", ".join(str(entry["random neurons moved"]) for entry in numbers.values())
        + "."
    )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
