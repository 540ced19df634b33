"""Real models under TransformerLens' hook points."""

from ttreg_interp.hooked.cache import ViTActivationCache
from ttreg_interp.hooked.contract import Check, Verification, verify
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.hooked.layout import TokenLayout
from ttreg_interp.hooked.load import ModelSpec, load, weights_hash
from ttreg_interp.hooked.text_layout import TextLayout
from ttreg_interp.hooked.vit import HookedViT

__all__ = [
    "Check",
    "Verification",
    "verify",
    "HookedLM",
    "HookedViT",
    "ModelSpec",
    "TextLayout",
    "TokenLayout",
    "ViTActivationCache",
    "load",
    "weights_hash",
]
