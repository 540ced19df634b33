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

LANGUAGE = {
    "hf-lm": ("", "hf-lm:EleutherAI/pythia-70m"),
    "tl": (", by TransformerLens' names", "tl:gpt2-small"),
    "llama2c": (": checkpoints of llama2.c", "llama2c:stories260K.bin"),
    "testbed-lm": (" with planted massive activations", "testbed-lm:llama"),
}
"""Sources of language models, which the commands that read images do not take."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the supported model families and how their specs are written."""

    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Print the families."""
        known = _known()
        families = table("Model families", "source", "classes", "example")
        for column in families.columns:
            column.justify = "left"
        families.columns[2].no_wrap = True
        for source, (classes, example) in known.items():
            families.add_row(source, classes, example)
        notes = (
            "SOURCE:NAME@FILE loads a local checkpoint, SOURCE:NAME?random random weights without a "
            "download.\n`ttreg verify MODEL` checks one; an object in hand goes through "
            "HookedViT.wrap(module)."
        )
        body = {source: {"classes": row[0], "example": row[1]} for source, row in known.items()}
        emit(body, self.json, families, notes)
        return 0


def _known() -> dict[str, tuple[str, str]]:
    """Source -> its classes and an example."""
    from ttreg_interp.hooked.sources import FAMILIES, causal_lm

    vision = {source: (classes, EXAMPLES[source]) for source, classes in FAMILIES.items()}
    named = f"language models ({', '.join(causal_lm.FAMILIES)})"
    language = {
        source: (("language models" if words else named) + words, example)
        for source, (words, example) in LANGUAGE.items()
    }
    return vision | language
