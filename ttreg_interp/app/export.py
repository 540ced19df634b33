"""The state of the page to take along: as Python, and as JSON. Both give the numbers shown."""

import hashlib
import json
from dataclasses import asdict, dataclass
from string import Template
from typing import Any

from PIL import Image

from ttreg_interp.app.look import MEAN_PATCH, Pair, View
from ttreg_interp.app.settings import Settings
from ttreg_interp.app.upload import Picture
from ttreg_interp.provenance import versions

SCHEMA = "ttreg_interp.explorer/1"
"""Of the state as JSON."""

_PYTHON = Template('''\
import torch

import ttreg_interp as tt
$imports

model = tt.load($model)
image = $image
pixels = model.preprocess(image)[None].to(model.cfg.device, model.cfg.dtype)
intervention = $intervention


def look(arm):
    """The numbers of the page under one arm."""
    hooks = $hooks
    with torch.no_grad(), model.intervened(arm):
        output, cache = model.run_with_cache(pixels, names_filter=hooks)
    layout = cache.layout
    norms = cache["resid_post", $layer][0].norm(dim=-1).float()
    patch_norms = norms[layout.patches]
    pattern = cache["pattern", $layer][0].float()$head  # query, key
    numbers = {"largest / median patch norm": patch_norms.max() / patch_norms.median()}
$reads
    return output.flatten().float(), {name: float(value) for name, value in numbers.items()}


intact, before = look(tt.Empty())
intervened, after = look(intervention)
after["change of the output"] = float((intervened - intact).norm() / intact.norm())
for name in after:
    print(f"{name}: {before.get(name)} -> {after[name]}")
''')


@dataclass(frozen=True)
class State:
    """All that is chosen on the page, and the numbers that it shows."""

    model: str
    """Spec of the model."""
    device: str
    """Where it ran."""
    picture: Picture
    """The image."""
    settings: Settings
    """What was done."""
    view: View
    """What of it was on show."""
    numbers: dict[str, Pair]
    """`Look.numbers`."""

    def python(self) -> str:
        """Python that prints the numbers shown.

        Raises:
            InterventionError: the settings mean no intervention.
        """
        view, where = self.view, "" if self.device == "cpu" else f", device={self.device!r}"
        block = f"blocks.{view.layer}"
        hooks = [f"{block}.hook_resid_post", f"{block}.attn.hook_pattern"]
        if view.neuron is not None:
            hooks.append(f"blocks.{view.neuron[0]}.mlp.hook_post")
        return _PYTHON.substitute(
            imports="\n".join(self._imports()),
            model=repr(self.model) + where,
            image=self.picture.python(),
            intervention=self.settings.python(),
            hooks=json.dumps(hooks),
            layer=view.layer,
            head=".mean(dim=0)" if view.head is None else f"[{view.head}]",
            reads=self._reads(),
        )

    def _imports(self) -> list[str]:
        found = ["from ttreg_interp.data.decode import read_image"]
        if self.picture.embedded:
            found = ["from ttreg_interp.testbed import photographs"]
        if self.settings.kind == "move outliers":
            found.append("from ttreg_interp.interventions import MoveNeurons")
        return sorted(found)

    def _reads(self) -> str:
        """Lines that read what the query draws, and the neuron."""
        view = self.view
        share = 'numbers["largest attention to one patch"] = row[layout.patches].max()'
        added = 'numbers["attention to added tokens"] = row[layout.test_time_registers].sum()'
        added = f"if layout.n_test_time_registers:\n    {added}"
        if view.query == MEAN_PATCH:
            lines = ["row = pattern[layout.patches].mean(dim=0)", share, *added.split("\n")]
        else:
            lines = [
                "names = layout.row_names()",
                f"if {view.query!r} in names:",
                f"    query = names.index({view.query!r})",
                *self._norm_of_query(),
                "    row = pattern[query]",
                *(f"    {line}" for line in [share, *added.split("\n")]),
            ]
        if view.neuron is not None:
            layer, neuron = view.neuron
            lines += [
                f'activation = cache["post", {layer}][0, layout.patches, {neuron}].float()',
                'numbers["largest |activation| of the neuron"] = activation.abs().max()',
            ]
        return "\n".join(f"    {line}" for line in lines)

    def _norm_of_query(self) -> list[str]:
        known = "norm of the query" in self.numbers
        return ['    numbers["norm of the query"] = norms[query]'] if known else []

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "image": {"name": self.picture.name, "sha256": _hash(self.picture.image)},
            "intervention": self.settings.intervention().to_dict(),
            "view": asdict(self.view),
            "numbers": {name: list(pair) for name, pair in self.numbers.items()},
            "versions": versions(),
        }

    def to_json(self) -> str:
        """The state and its numbers as one document."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def _hash(image: Image.Image) -> str:
    """Of the picture's RGB values, row by row."""
    return hashlib.sha256(image.tobytes()).hexdigest()
