"""What the sub-commands share: where the model and the images come from, and how results go out."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from ttreg_interp.hooked import HookedViT


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """SOURCE:NAME, e.g. open_clip:ViT-B-16/laion2b_s34b_b88k, hf:facebook/dinov2-large,
    timm:vit_tiny_patch16_224@weights.safetensors; `ttreg models` lists the sources."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: cuda where there is one."""
    image_size: int | None = None
    """Another resolution in pixels, where the model can interpolate its position embeddings."""
    fast_cpu: Literal["measured", "float32", "bfloat16"] | None = None
    """Other kernels for linears on a CPU. measured: oneDNN where it is faster; float32: oneDNN; bfloat16:
    products in bfloat16, with its error."""

    def load(self) -> "HookedViT":
        """The hooked model."""
        import torch

        from ttreg_interp.hooked import load

        on_cpu = self.fast_cpu is not None or not torch.cuda.is_available()
        return load(
            self.model,
            image_size=self.image_size,
            device=self.device or ("cpu" if on_cpu else "cuda"),
            fast_cpu=True if self.fast_cpu == "measured" else self.fast_cpu or False,
        )


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images."""

    images: Path
    """A folder (searched with its sub-folders), one image, a .txt file of paths, a data set of the hub
    as hf:NAME:SPLIT, or tars as part-*.tar or part-{000..031}.tar."""
    limit: int | None = None
    """Use at most so many images."""
    subset_seed: int | None = None
    """With --limit: draw the images at random with this seed instead of taking the first ones."""

    def open(self) -> Any:
        """The image source."""
        from ttreg_interp.data.images import images

        return images(self.images, limit=self.limit, seed=self.subset_seed)


def emit(body: dict[str, Any], as_json: bool, *tables: "Table | str") -> None:
    """Print a result: one JSON document, or tables for people."""
    if as_json:
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
        return
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False)  # brackets are intervals, not styles
    for table in tables:
        console.print(table, highlight=False)


def table(title: str, *columns: str) -> "Table":
    """A plain table; columns after the first are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write a JSON file atomically: it is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, silent where that is no terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="img", file=sys.stderr, disable=None) as bar:

        def advance(n_images: int) -> None:
            bar.update(n_images)

        yield advance
