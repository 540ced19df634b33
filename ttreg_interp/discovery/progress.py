"""Progress bars on standard error: silent unless wanted, and where that is no terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ttreg_interp.discovery.stream import Batch


def shown(batches: Iterable[Batch], what: str, progress: bool) -> Iterator[Batch]:
    """The batches, counted."""
    from tqdm.auto import tqdm

    yield from tqdm(batches, desc=what, unit="batch", disable=None if progress else True)


@contextmanager
def counted(
    what: str, progress: bool, total: int | None = None
) -> Iterator[Callable[[int], object]]:
    """What to tell how many images were run, of `total` if that is known."""
    from tqdm.auto import tqdm

    off = None if progress else True
    with tqdm(desc=what, unit="img", total=total, disable=off) as bar:
        yield bar.update
