"""Which images make up a batch follows from their places, and what is not taken is not opened."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.discovery.laws import law
from ttreg_interp.data import images
from ttreg_interp.discovery import Shard
from ttreg_interp.discovery.stream import WHOLE, ImageStream, Part, held_out
from ttreg_interp.errors import DataError

N_IMAGES = 23


class Numbered:
    """A data set whose n-th image is n everywhere; notes which it was asked for."""

    def __init__(self, n_images: int = N_IMAGES, broken: tuple[int, ...] = ()):
        self.n_images, self.broken = n_images, broken
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, number: int) -> Image.Image:
        self.opened.append(number)
        if number in self.broken:
            raise OSError("damaged")
        return Image.new("RGB", (2, 2), (number, 0, 0))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def stream_of(dataset: Numbered, workers: int = 0) -> ImageStream:
    return ImageStream(images(dataset), pixels, batch_size=4, workers=workers)


def composition(batches) -> dict[int, list[int]]:
    return {batch.number: batch.pixels[:, 0, 0, 0].int().tolist() for batch in batches}


@law
@given(share=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.9]), n_images=st.integers(0, 60))
def test_two_parts_split_a_set_and_number_their_images(share, n_images):
    parts = Part.split(share)
    members = [[at for at in range(n_images) if part.holds(at)] for part in parts]
    assert sorted(members[0] + members[1]) == list(range(n_images))
    for part, places in zip(parts, members, strict=True):
        assert [part.rank(at) for at in places] == list(range(len(places)))
    out = held_out(torch.arange(n_images), share)
    assert out.nonzero().flatten().tolist() == members[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_hold_the_batches_of_one_process_and_nothing_else_is_opened(workers):
    scored, _ = Part.split(0.25)
    whole = composition(stream_of(Numbered()).batches(scored))
    assert whole[0] == [0, 1, 2, 4] and whole[1] == [5, 6, 8, 9]
    joined = {}
    for shard in (Shard(i, 3) for i in range(3)):
        dataset = Numbered()
        own = composition(stream_of(dataset, workers).batches(scored, shard.takes))
        assert all(number % 3 == shard.number for number in own)
        if not workers:  # worker processes keep their own notes
            assert dataset.opened == [place for batch in own.values() for place in batch]
        joined |= own
    assert joined == whole


def test_an_image_that_cannot_be_read_leaves_a_gap_in_its_own_batch_alone():
    whole = composition(stream_of(Numbered()))
    gaps = composition(stream_of(Numbered(broken=(1, 8, 9, 10, 11))))
    assert gaps[0] == [0, 2, 3]
    assert 2 not in gaps
    assert {n: gaps[n] for n in (1, 3, 4, 5)} == {n: whole[n] for n in (1, 3, 4, 5)}
    places = [batch.index.tolist() for batch in stream_of(Numbered(broken=(1,)))]
    assert places[0] == [0, 2, 3] and places[1] == [4, 5, 6, 7]


def test_a_share_of_which_nothing_can_be_read_is_empty_and_no_error():
    broken = stream_of(Numbered(8, broken=(4, 5, 6, 7)))
    assert composition(broken.batches(WHOLE, Shard(1, 2).takes)) == {}
    assert composition(broken.batches(WHOLE, Shard(2, 3).takes)) == {}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("side", [0, 1])
def test_tensors_and_sets_give_the_same_batches(share, side):
    part = Part.split(share)[side]
    dataset = Numbered()
    stacked = torch.stack([pixels(dataset[i]) for i in range(len(dataset))])
    of_tensor = list(ImageStream(stacked, batch_size=4).batches(part))
    of_set = list(stream_of(dataset).batches(part))
    assert [batch.number for batch in of_tensor] == [batch.number for batch in of_set]
    for one, other in zip(of_tensor, of_set, strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.index, other.index)


def test_given_batches_stay_together():
    given_batches = [torch.full((n, 3, 2, 2), float(n)) for n in (3, 1, 5)]
    scored, _ = Part.split(0.25)
    found = list(ImageStream(given_batches).batches(scored, lambda number: number != 0))
    assert [batch.index.tolist() for batch in found] == [[4, 5, 6, 8]]
    assert [batch.number for batch in found] == [2]


def test_images_of_two_sizes_in_one_batch_are_refused():
    stream = ImageStream(images(Numbered()), lambda image: torch.zeros(3, *sizes.pop()))
    sizes = [(2, 2), (2, 3)] * 12
    with pytest.raises(DataError, match="Images of one run have one size"):
        list(stream)
