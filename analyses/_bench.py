"""The model, images and neurons of a script, and what is read off while they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttreg_interp.data.images import images
from ttreg_interp.data.labels import read_labels
from ttreg_interp.discovery import (
    FindConfig,
    OutlierReport,
    RegisterNeurons,
    find_outliers,
    find_register_neurons,
)
from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT, TokenLayout, load, weights_hash
from ttreg_interp.hooked.load import ModelSpec
from ttreg_interp.interventions import Empty, Intervention, NeuronSet
from ttreg_interp.testbed import PlantedViT, photographs, planted_vit

Read = Callable[[Tensor], Tensor]
"""From an activation [batch, ...] to what is kept of it, batch first."""
OUTPUT = "output"
"""Name under which `Bench.collect` keeps what the model returned."""


@dataclass(frozen=True)
class BenchConfig:
    """One model on some images."""

    out: Path
    """Folder for result.json, summary.md and the figures."""
    model: str = "testbed:planted"
    """A model spec; 'testbed:planted' is the planted ViT, whose neurons are known."""
    neurons: str = ""
    """Register neurons: a file of `ttreg find`, or LAYER:NEURON separated by commas. Absent: the
    planted ones, and those of another model are found on the images."""
    images: str = ""
    """Folder of images, with a labels.csv for classes; photographs of scikit-image if absent."""
    limit: int = 64
    """At most so many images, drawn at random."""
    image_size: int | None = None
    """Another resolution in pixels, where the model can interpolate its position embeddings."""
    batch_size: int = 16
    """Images of one forward pass."""
    seed: int = 0
    """Of the draw and order of the images, of controls and of intervals."""

    @property
    def bench(self) -> "Bench":
        """Model, images and neurons; equal configurations share them within a process."""
        return shared_bench(
            self.model,
            self.neurons,
            self.images,
            self.limit,
            self.image_size,
            self.batch_size,
            self.seed,
        )


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, its register neurons, and images in a random order."""

    model: HookedViT
    """Intact."""
    neurons: NeuronSet
    """Its register neurons."""
    pixels: Float[Tensor, "image channel height width"]
    """Preprocessed."""
    labels: Int[Tensor, " image"] | None
    """Classes, where they are known."""
    planted: PlantedViT | None
    """The truth of an embedded model."""
    origin: Mapping[str, Any]
    """Model, images and neurons, with hashes."""
    batch_size: int
    """Images of one forward pass."""
    seed: int
    """Of controls and intervals."""

    @cached_property
    def report(self) -> OutlierReport:
        """Of the intact model's outliers, if there are any."""
        options = FindConfig(batch_size=self.batch_size, seed=self.seed)
        return find_outliers(self.model, self.pixels, options)

    @property
    def outliers(self) -> OutlierReport:
        """Threshold and layers of the intact model's outliers.

        Raises:
            DataError: it has none on these images.
        """
        if self.report.threshold is None or self.report.emerges_at is None:
            raise DataError(f"Nothing to analyse. {self.report.summary()}")
        return self.report

    @property
    def facts(self) -> dict[str, Any]:
        """For the result: where everything comes from, and what kind of outliers these are."""
        return {**self.origin, "outliers": self.report.summary()}

    def part(self, chosen: slice | Bool[Tensor, " image"]) -> "Bench":
        """Some of the images; outliers are told as among all of them."""
        labels = None if self.labels is None else self.labels[chosen]
        pixels = self.pixels[chosen]
        origin = {**self.origin, "n_images": len(pixels)}
        fewer = replace(self, pixels=pixels, labels=labels, origin=origin)
        fewer.__dict__["report"] = self.report  # where a cached_property keeps its value
        return fewer

    @property
    def threshold(self) -> float:
        """Norm above which a token is an outlier, found on the intact model."""
        assert self.outliers.threshold is not None
        return self.outliers.threshold

    @property
    def emerges_at(self) -> int:
        """First layer at which outliers stand out."""
        assert self.outliers.emerges_at is not None
        return self.outliers.emerges_at

    @property
    def last(self) -> int:
        """The last block."""
        return self.model.cfg.n_layers - 1

    @property
    def resid(self) -> str:
        """Hook point at which outliers are told."""
        return f"blocks.{self.outliers.detect_layer}.hook_resid_post"

    def layout(self, arm: Intervention | None = None) -> TokenLayout:
        """The token axis under an arm."""
        added = 0 if arm is None else arm.n_added_tokens
        return self.model.layout(self.pixels.shape).with_test_time_registers(added)

    def reader(
        self, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head key"]:
        """Attention of [CLS]; in a model without it, the mean over patches as queries."""
        layout = self.layout().of_length(pattern.shape[2])
        return pattern[:, :, layout.cls if layout.n_cls else layout.patches].mean(dim=2)

    def norms_at(self, layer: int) -> Float[Tensor, "image patch"]:
        """Residual norms of the intact patches after a block."""
        patches = self.layout().patches
        hook = f"blocks.{layer}.hook_resid_post"
        return self.collect({"n": (hook, lambda resid: resid[:, patches].norm(dim=-1))})["n"]

    @cached_property
    def norms(self) -> Float[Tensor, "image patch"]:
        """Those at the detection layer."""
        return self.norms_at(self.outliers.detect_layer)

    @cached_property
    def is_outlier(self) -> Bool[Tensor, "image patch"]:
        """Patches that are outliers of the intact model."""
        return self.norms > self.threshold

    def random(self, draw: int = 0) -> NeuronSet:
        """A matched random control: as many other neurons in every layer."""
        return self.neurons.matched_random(self.seed + 1000 + draw, self.model.cfg.d_mlp)

    @torch.no_grad()
    def collect(
        self,
        read: Mapping[str, tuple[str, Read]],
        arm: Intervention | None = None,
        pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is read off at hook points, for all images.

        Args:
            read: name -> hook point and reader.
            arm: in force while reading.
            pixels: of other images than the bench's.

        Returns:
            name -> all images, in float32; and the model's output under `OUTPUT`.
        """
        kept: dict[str, list[Tensor]] = {name: [] for name in (*read, OUTPUT)}
        hooks = [(at, partial(_keep, kept[name], reader)) for name, (at, reader) in read.items()]
        with self.model.intervened(arm or Empty()):
            for batch in (self.pixels if pixels is None else pixels).split(self.batch_size):
                kept[OUTPUT].append(self.model.run_with_hooks(batch, fwd_hooks=hooks).float())
        return {name: torch.cat(parts) for name, parts in kept.items()}


def _keep(kept: list[Tensor], reader: Read, activation: Tensor, hook: Any) -> None:
    kept.append(reader(activation.detach()).float().clone())


def mean_where(
    values: Float[Tensor, "image patch"], chosen: Bool[Tensor, "image patch"]
) -> Float[Tensor, " image"]:
    """Mean over the chosen patches of every image that has some."""
    some = chosen.any(dim=1)
    return (values * chosen).sum(dim=1)[some] / chosen.sum(dim=1)[some]


@lru_cache(maxsize=2)
def shared_bench(
    spec: str,
    neurons: str,
    folder: str,
    limit: int,
    image_size: int | None,
    batch_size: int,
    seed: int,
) -> Bench:
    """What `BenchConfig.bench` gives; loaded once."""
    model = load(spec, image_size=image_size)
    planted = _planted(spec, image_size)
    pixels, labels, digest = _images(model, folder, limit, seed)
    options = FindConfig(batch_size=batch_size, seed=seed, evidence=False)
    chosen, told_by = _neurons(model, neurons, planted, pixels, options)
    origin = {
        "model": model.cfg.model_name,
        "weights_sha256": weights_hash(model.source),
        "images": f"{len(pixels)} of {folder or 'the photographs of the testbed'}",
        "n_images": len(pixels),
        "images_sha256": digest,
        "image_size": list(pixels.shape[-2:]),
        "neurons": chosen.to_dict(),
        "neurons_from": told_by,
    }
    return Bench(model, chosen, pixels, labels, planted, origin, batch_size, seed)


def _planted(spec: str, image_size: int | None) -> PlantedViT | None:
    source, name = ModelSpec.parse(spec).source, ModelSpec.parse(spec).name
    if source != "testbed" or not name.startswith("planted"):
        return None
    layout, size, seed = [*name.split("/")[1:], "", "", ""][:3]
    more = {} if image_size is None else {"image_size": image_size}
    return planted_vit(layout=layout or "timm", size=size or "tiny", seed=int(seed or 0), **more)


def _images(
    model: HookedViT, folder: str, limit: int, seed: int
) -> tuple[Tensor, Tensor | None, str]:
    """Pixels, classes and a digest; a folder's in a random order, so that any part is a fair sample."""
    preprocess = model.preprocess
    if preprocess is None:
        raise DataError(f"{model.cfg.model_name} comes without preprocessing; set one.")
    if not folder:
        pictures = list(photographs(max(model.image_size)).values())[:limit]
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        return pixels, None, sha256(pixels.numpy().tobytes()).hexdigest()
    source = images(folder, limit=limit, seed=seed)
    batches = list(source.batches(preprocess, 16))
    pixels = torch.cat([batch.pixels for batch in batches])
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    table = Path(folder) / "labels.csv"
    labels = None
    if table.exists():
        labels = read_labels(table).indices([path for batch in batches for path in batch.paths])[
            order
        ]
    return pixels[order], labels, source.digest()


def _neurons(
    model: HookedViT, told: str, planted: PlantedViT | None, pixels: Tensor, config: FindConfig
) -> tuple[NeuronSet, str]:
    """Register neurons and where they come from."""
    if Path(told).is_file():
        found = RegisterNeurons.load(told)
        found.check_model(model)
        return found.neurons, "a file"
    if told:
        pairs = [tuple(map(int, pair.split(":"))) for pair in told.split(",")]
        return NeuronSet.of(pairs), "the command line"
    if planted is not None:
        return NeuronSet.of(planted.truth), "planted"
    return find_register_neurons(model, pixels, config).neurons, "found on these images"
