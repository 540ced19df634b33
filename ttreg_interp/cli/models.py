"""`ttreg models`: what can be loaded, and how it is written."""

from dataclasses import dataclass

from ttreg_interp.cli.common import emit, table

EXAMPLES = {
    "open_clip": "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "timm": "timm:vit_base_patch14_dinov2.lvd142m",
    "dinov2": "dinov2:dinov2_vitl14",
    "hf": "hf:facebook/dinov2-large",
    "testbed": "testbed:planted",
}


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the supported model families and how their specs are written."""

    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Print the families."""
        from ttreg_interp.hooked.sources import FAMILIES

        families = table("Model families", "source", "classes", "example")
        for column in families.columns:
            column.justify = "left"
        families.columns[2].no_wrap = True
        for source, classes in FAMILIES.items():
            families.add_row(source, classes, EXAMPLES[source])
        notes = (
            "SOURCE:NAME@FILE loads a local checkpoint, SOURCE:NAME?random random weights without a "
            "download.\n`ttreg verify MODEL` checks one; an object in hand goes through "
            "HookedViT.wrap(module)."
        )
        body = {
            source: {"classes": FAMILIES[source], "example": EXAMPLES[source]}
            for source in FAMILIES
        }
        emit(body, self.json, families, notes)
        return 0
