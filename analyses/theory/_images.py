"""The models and images that the empirical theory scripts share."""

import csv
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ttreg_interp.hooked import HookedViT, load
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.testbed import photograph_tensor, planted_vit

SUFFIXES = {".jpg", ".jpeg", ".png"}


def model_and_neurons(spec: str, neurons: str) -> tuple[HookedViT, NeuronSet]:
    """A model by its spec, or the planted ViT where `neurons` is empty.

    Args:
        spec: of the model; 'planted' is the planted ViT.
        neurons: pairs 'LAYER:NEURON', separated by commas.
    """
    if spec == "planted":
        vit = planted_vit()
        return HookedViT.wrap(vit.module), NeuronSet.of(vit.truth)
    if not neurons:
        raise SystemExit(f"--neurons LAYER:NEURON,... is needed for {spec}; find them first.")
    pairs = [pair.split(":") for pair in neurons.split(",")]
    return load(spec), NeuronSet.of([(int(layer), int(neuron)) for layer, neuron in pairs])


def pixels_and_labels(
    model: HookedViT, folder: str, limit: int | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Photographs that come with the packages, or a folder; classes where it has a labels.csv.

    A folder's images are put in a random order first, so that any part of them is a fair sample.
    """
    if not folder:
        return photograph_tensor(model.image_size[0]), None
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    files = [files[i] for i in order.tolist()][:limit]
    preprocess = model.preprocess
    assert preprocess is not None
    pixels = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in files])
    table = Path(folder) / "labels.csv"
    if not table.exists():
        return pixels, None
    with table.open() as lines:
        classes = {row["file"]: int(row["class_index"]) for row in csv.DictReader(lines)}
    return pixels, torch.tensor([classes[path.name] for path in files])
