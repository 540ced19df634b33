"""A vision transformer that no source file knows."""

import pytest
import torch
from torch import Tensor, nn

from tests.interventions.models import D_MLP, D_MODEL, GRID, N_HEADS, N_LAYERS


class Mixer(nn.Module):
    """Attention spelled out, with a fused projection: what InternViT's own code does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(D_MODEL, 3 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, N_HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (D_MODEL // N_HEADS) ** -0.5
        pattern = self.drop(scores.softmax(dim=-1))
        return self.proj((pattern @ v).transpose(1, 2).flatten(2))


class Feedforward(nn.Module):
    """A plain MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = (
            nn.Linear(D_MODEL, D_MLP),
            nn.GELU(),
            nn.Linear(D_MLP, D_MODEL),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Stage(nn.Module):
    """A pre-norm block with one number for LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.mixer, self.ff = Mixer(), Feedforward()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mixer(self.n1(hidden))
        return hidden + self.ff(self.n2(hidden))


class Unknown(nn.Module):
    """A classifier over [CLS]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, D_MODEL, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, D_MODEL))
        self.positions = nn.Parameter(torch.randn(1, 1 + GRID**2, D_MODEL))
        self.stages = nn.ModuleList(Stage() for _ in range(N_LAYERS))
        self.norm, self.head = nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls.expand(len(tokens), -1, -1), tokens), dim=1) + self.positions
        for stage in self.stages:
            tokens = stage(tokens)
        return self.head(self.norm(tokens)[:, 0])


@pytest.fixture(scope="session")
def unknown() -> nn.Module:
    """The module."""
    torch.manual_seed(3)
    return Unknown().eval()


@pytest.fixture
def spelled_out(unknown):
    """It, traced by a map of its sites."""
    from tests.backends.maps import UNKNOWN_SHAPE, UNKNOWN_SITES
    from ttreg_interp.backends.nnsight import TracedViT

    return TracedViT.trace(unknown, UNKNOWN_SITES, UNKNOWN_SHAPE)
