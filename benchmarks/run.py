"""Time every arm, interleaved, and write the table of the docs.

Question: what do hooks, caches, patterns, interventions and the scoring pass cost, against the plain
model on the same weights and batch; and what do other tools cost?
Command: make bench (or `python -m benchmarks.run --suites base --rounds 15`)
Runtime: about 20 min on one CPU core; `--quick` checks in a minute that everything runs.
"""

import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks import ours
from benchmarks.memory import retained_mib
from benchmarks.models import SIZES, batch, source, with_one_token_more
from benchmarks.peers import peers
from benchmarks.scoring import scoring
from benchmarks.timing import Work, interleaved, ratio
from ttreg_interp.hooked import HookedViT
from ttreg_interp.provenance import versions

PLAIN, PLAIN_LONGER, EAGER = "plain model", "plain model, one token more", "plain model, eager"

Suite = Literal["base", "tiny", "long", "scoring"]


@dataclass(frozen=True)
class Config:
    """What to time."""

    out: Path = Path("benchmarks/results")
    """Folder for MACHINE.json and MACHINE.md."""
    suites: tuple[Suite, ...] = ("tiny", "base", "long", "scoring")
    """base: ViT-B/16, 8 images; tiny: 5 tokens, fixed costs; long: 1370 tokens; scoring: discovery."""
    rounds: int = 15
    """Timed rounds of every arm."""
    device: str = "cpu"
    """cpu (process CPU time) or cuda (events)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and images."""
    threads: int = 1
    """CPU threads. On a machine that others use too, one thread measures best."""
    only: tuple[str, ...] = ()
    """Arms whose names contain one of these words, besides the plain models; default: all."""
    quick: bool = False
    """The tiny model, one round: does everything run?"""


def arms(name: str, config: Config, folder: Path) -> dict[str, Work]:
    """All arms of a suite."""
    if name == "scoring":
        return scoring("small" if config.quick else "base", 96 if config.quick else 224)
    size = SIZES[name]
    dtype = getattr(torch, config.dtype)
    pixels = batch(size).to(config.device, dtype)

    def plain(attention: str = "sdpa"):
        return source(size, attention).to(config.device, dtype)

    model = HookedViT.wrap(plain())
    base, longer, eager = plain(), with_one_token_more(plain()), plain("eager")
    found: dict[str, Work] = {
        PLAIN: lambda: base(pixels),
        PLAIN_LONGER: lambda: longer(pixels),
        EAGER: lambda: eager(pixels, output_attentions=True),
        **ours.seen(model, pixels),
        **ours.intervened(model, pixels),
    }
    if config.device == "cpu" and config.dtype == "float32":
        found |= ours.fast(size, pixels)
        if name != "long":
            found |= ours.deployed(model, pixels, folder) | peers(size, pixels)
    if config.device == "cpu" and config.dtype == "bfloat16":
        exact, images = source(size), batch(size)
        found["plain model, float32"] = lambda: exact(images)
    return found


def chosen(found: Mapping[str, Work], only: tuple[str, ...]) -> dict[str, Work]:
    """The arms that are asked for, and the plain ones that they are compared with."""
    words = (*only, "plain") if only else ("",)
    return {name: work for name, work in found.items() if any(word in name for word in words)}


def base_of(arm: str, names: Mapping[str, object]) -> str:
    """Interventions that add a token are compared with the plain model of as many tokens."""
    if arm in ("extra token", "test-time register") or arm.startswith("register,"):
        return PLAIN_LONGER
    if arm == "pattern of all layers":
        return EAGER
    return PLAIN if PLAIN in names else next(iter(names))


def table(suite: str, seconds: Mapping[str, list[float]]) -> str:
    """Markdown: every arm over its base."""
    lines = [f"### {suite}", "", "| arm | over | ratio of medians [quartiles] |", "|---|---|---|"]
    for arm in seconds:
        base = base_of(arm, seconds)
        lines.append(f"| {arm} | {base} | {ratio(seconds[arm], seconds[base])} |")
    return "\n".join(lines)


def cache_sizes(name: str) -> dict[str, float]:
    """MiB an image that a cache of all neurons, and of everything, keeps."""
    size = SIZES[name]
    model, pixels = HookedViT.wrap(source(size)), batch(size)
    neurons = lambda hook: hook.endswith("mlp.hook_post")
    caches = {"neurons": neurons, "everything": None}
    return {
        kind: retained_mib(model.run_with_cache(pixels, names_filter=names)[1].values())
        / size.batch
        for kind, names in caches.items()
    }


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpu": cpu, "gpu": gpu, "threads": torch.get_num_threads()}


@torch.no_grad()
def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    suites = ("tiny", "scoring") if config.quick else config.suites
    rounds = 1 if config.quick else config.rounds
    settings = {name: value for name, value in vars(config).items() if name != "out"}
    result: dict = {"machine": machine(), "versions": versions(), "configuration": settings}
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for name in suites:
            wanted = chosen(arms(name, config, Path(folder)), config.only)
            seconds = interleaved(wanted, rounds, config.device)
            result[name] = {"seconds": seconds}
            if name in SIZES:
                result[name]["cache_mib_per_image"] = cache_sizes(name)
            tables.append(table(name, seconds))
            print(tables[-1], flush=True)
    save(config, result, tables)


def save(config: Config, result: dict, tables: list[str]) -> None:
    """MACHINE.json holds every round, MACHINE.md the tables."""
    config.out.mkdir(parents=True, exist_ok=True)
    label = result["machine"]["gpu" if config.device == "cuda" else "cpu"]
    words = [*label.replace("(R)", "").split(), config.dtype, *" ".join(config.only).split()]
    label = "-".join(words).lower().replace(",", "")
    body = json.dumps(result, indent=1, default=str) + "\n"
    (config.out / f"{label}.json").write_text(body, encoding="utf-8")
    head = ", ".join(f"{k} {v}" for k, v in (result["machine"] | result["versions"]).items())
    text = "\n\n".join([f"{head}; {config.dtype}, {config.device}", *tables]) + "\n"
    (config.out / f"{label}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
