"""How laws are tried here: over kinds, layouts and batches, the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import Intervention

from .kinds import EXAMPLES, fits
from .models import LAYOUTS, images, model

law = settings(max_examples=30, deadline=None, derandomize=True)
few = settings(max_examples=10, deadline=None, derandomize=True)
layouts = st.sampled_from(sorted(LAYOUTS))


def batches_of(*dtypes: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    """Batches of one to four images in one of the dtypes."""
    return st.builds(images, st.integers(1, 4), st.integers(0, 1000), st.sampled_from(dtypes))


batches = batches_of(torch.float32)
any_batches = batches_of(torch.float32, torch.bfloat16, torch.float64)


@st.composite
def cases(draw: st.DrawFn, n: int = 1) -> tuple[Any, ...]:
    """A layout and `n` different kinds that fit it and may be composed in this order."""
    layout = draw(layouts)
    names = [name for name in EXAMPLES if fits(name, layout)]
    chosen = draw(st.lists(st.sampled_from(names), min_size=n, max_size=n, unique=True))
    return (layout, *(EXAMPLES[name](layout) for name in chosen))


def compatible(*interventions: Intervention) -> bool:
    """Whether they may be composed in this order."""
    try:
        sum(interventions[1:], interventions[0])  # type: ignore[arg-type]
    except InterventionError:
        return False
    return True


@contextmanager
def as_users_run() -> Iterator[None]:
    """Without the checks of annotations that tests turn on, so that our own errors are reached."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", before)


@torch.no_grad()
def run(layout: str, pixels: torch.Tensor, *interventions: Intervention) -> torch.Tensor:
    """The output under interventions."""
    with model(layout, pixels.dtype).intervened(*interventions) as hooked:
        return hooked(pixels)


def outcome(layout: str, pixels: torch.Tensor, *interventions: Intervention) -> torch.Tensor:
    """The output, or one NaN where the model cannot run under them."""
    try:
        return run(layout, pixels, *interventions)
    except InterventionError:
        return torch.full((1,), torch.nan)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, refusals included."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def n_hooks(layout: str, dtype: torch.dtype = torch.float32) -> int:
    """Hooks on the model of a layout."""
    return sum(len(point.fwd_hooks) for point in model(layout, dtype).hook_dict.values())


@torch.no_grad()
def before_and_after(
    layout: str, pixels: torch.Tensor, intervention: Intervention, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a hook point held in an intervened run, before and after the edits there."""
    seen: list[torch.Tensor] = []

    def keep(activation: torch.Tensor, hook: Any) -> None:
        seen.append(activation)

    hooked = model(layout)
    watch = {"fwd_hooks": [(name, keep)]}
    with hooked.hooks(**watch), hooked.intervened(intervention), hooked.hooks(**watch):
        hooked(pixels)
    before, after = seen
    return before, after


@torch.no_grad()
def cached(layout: str, pixels: torch.Tensor, *interventions: Intervention) -> Any:
    """The cache of an intervened run."""
    with model(layout).intervened(*interventions) as hooked:
        return hooked.run_with_cache(pixels)[1]
