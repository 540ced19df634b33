"""Folders of transformers models under an intervention: safetensors, configuration, no custom code."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ttreg_interp.deploy.bake import bake
from ttreg_interp.deploy.check import check_equal
from ttreg_interp.deploy.files import draft_folder, provenance
from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.hooked.sources import common, parts_of
from ttreg_interp.interventions import Intervention, ZeroNeurons
from ttreg_interp.interventions.base import flattened
from ttreg_interp.interventions.selector import ALL_TOKENS

SCHEMA = "pretrained/1"
RECORD = "intervention.json"
SOURCE = "source"
"""Subfolder of a source that needs its intervention: transformers finds no model in the folder
itself, so it cannot load one that silently runs without."""

README = """\
{described}

A {name} of transformers, saved by ttreg_interp. `source/` holds its configuration and weights as they
were; `intervention.json` says what is done to its forward pass. Load both together:

    import ttreg_interp as tt
    model = tt.from_pretrained("this folder")  # a {name}, intervention inside
"""


def save_pretrained(model: HookedViT, intervention: Intervention, folder: str | Path) -> Path:
    """Save a transformers model with its intervention, as safetensors and JSON.

    Where weights alone can hold the intervention (zeroed neurons, or nothing), the folder is a plain
    one, which `AutoModel.from_pretrained(folder)` and everybody else reads. Everything else needs
    code: then `folder/source` holds the plain model, `folder/intervention.json` what is done to it,
    and `from_pretrained` of this package puts them together; transformers by itself finds no model in
    `folder`. Neither needs `trust_remote_code`.

    Args:
        model: a HookedViT over a model of transformers.
        intervention: what to do.
        folder: to make; it must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        UnsupportedModelError: not a model of transformers.
        InterventionError: the intervention does not fit the model.
        ArtifactError: the folder is taken.
    """
    target = Path(folder)
    source: Any = model.source
    _check_class(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target} exists and is not empty. Name a new folder, or remove it.")
    folded = _folded(model, intervention)
    if folded is None:
        bake(model, intervention)  # refuses now what could not be loaded later
    record = {
        "schema": SCHEMA,
        "class": type(source).__name__,
        "in_weights": folded is not None,
        **provenance(model, intervention),
    }
    with draft_folder(target) as draft:
        content = draft / target.name
        if folded is None:
            source.save_pretrained(content / SOURCE)
            text = README.format(described=record["described"], name=record["class"])
            (content / "README.md").write_text(text, encoding="utf-8")
        else:
            folded.save_pretrained(content)
            record["weights_hash"] = weights_hash(folded)
        (content / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if target.exists():
            target.rmdir()
        content.rename(target)
    return target


def from_pretrained(folder: str | Path, drop_registers: bool = True) -> nn.Module:
    """Load what `save_pretrained` wrote: a model of its own class, with the intervention in it.

    Args:
        folder: the folder.
        drop_registers: whether its readers see the registers; see `bake`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ArtifactError: no such folder, damaged, of another schema, or with weights of another hash.
    """
    place = Path(folder)
    record = _read_record(place / RECORD)
    whole = place if record["in_weights"] else place / SOURCE
    module = _class_named(record["class"], place).from_pretrained(
        whole, dtype="auto", use_safetensors=True, local_files_only=True
    )
    found = weights_hash(module)
    if found != record["weights_hash"]:
        raise ArtifactError(
            f"{place}: the weights have hash {found[:12]}, {RECORD} was written for "
            f"{record['weights_hash'][:12]}. They were changed or replaced; save the folder anew."
        )
    if record["in_weights"]:
        return module.eval()
    intervention = Intervention.from_dict(record["intervention"])
    return bake(HookedViT(*parts_of(module)), intervention, drop_registers)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}). tt.from_pretrained takes a folder that "
            "tt.save_pretrained made; for a plain model use tt.load('hf:...')."
        ) from None
    wanted = {"class", "in_weights", "weights_hash", "intervention"}
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or wanted - record.keys():
        raise ArtifactError(f"{path} is not of schema {SCHEMA!r}. Save the folder anew.")
    return record


def _class_named(name: str, place: Path) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ArtifactError(
            f"{place} holds a {name}, and transformers {transformers.__version__} has no model class "
            "of that name. Install the version named in its intervention.json."
        )
    return found


def _check_class(source: nn.Module) -> None:
    own = type(source).__module__.split(".")[0] == "transformers"
    if not own or not common.is_instance(source, "transformers", "PreTrainedModel"):
        raise UnsupportedModelError(
            f"{common.class_name(source)} is no model class of transformers, so it has no "
            "save_pretrained that others can read. Use tt.export or tt.to_onnx, or save the source's "
            "own checkpoint and the intervention (intervention.save) beside it."
        )


def _folded(model: HookedViT, intervention: Intervention) -> Any:
    """A copy of the source with the intervention in its weights, None where they cannot hold it."""
    parts = flattened([intervention])
    if not all(isinstance(part, ZeroNeurons) and part.tokens == ALL_TOKENS for part in parts):
        return None
    intervention.fwd_hooks(model)  # refuses neurons that the model lacks
    folded = copy.deepcopy(model.source)
    blocks = parts_of(folded)[1].blocks
    for part in parts:
        for layer, neurons in part.neurons.layers:
            with torch.no_grad():
                blocks[layer].mlp.out.weight[:, list(neurons)] = 0
    check_equal(lambda pixels: (parts_of(folded)[1].reference(pixels),), model, intervention)
    return folded
