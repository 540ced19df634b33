"""The site map that a person writes for the vision transformer that no source file knows."""

from tests.interventions.models import GRID, N_HEADS, N_LAYERS
from ttreg_interp.backends.shape import TowerShape
from ttreg_interp.backends.sites import BlockSites, SiteMap

UNKNOWN_SITES = SiteMap(
    block="stages.{layer}",
    inside=BlockSites(
        ln1="n1",
        attn_out="mixer.proj",
        ln2="n2",
        mlp_out="ff.down",
        pattern="mixer.drop.output",
        z="mixer.proj.input",
        attn_contribution="mixer.output",
        resid_mid="source.hidden_0.output",
        mlp_contribution="ff.output",
    ),
)
UNKNOWN_SHAPE = TowerShape(
    n_layers=N_LAYERS, n_heads=N_HEADS, image_size=(GRID * 8, GRID * 8), patch_size=(8, 8)
)
