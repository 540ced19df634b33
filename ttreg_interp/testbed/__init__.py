"""Embedded models whose truth is known, and photographs to run them on; nothing is downloaded."""

from ttreg_interp.testbed.circuit import Circuit
from ttreg_interp.testbed.config import PlantedConfig
from ttreg_interp.testbed.photographs import (
    PHOTOGRAPHS,
    photograph_tensor,
    photographs,
    save_photographs,
)
from ttreg_interp.testbed.planted import PlantedViT, clean_vit, plant, planted_vit

__all__ = [
    "PHOTOGRAPHS",
    "Circuit",
    "PlantedConfig",
    "PlantedViT",
    "clean_vit",
    "photograph_tensor",
    "photographs",
    "plant",
    "planted_vit",
    "save_photographs",
]
