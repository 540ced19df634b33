"""Thumbnails show what the model saw: preprocessing undone, cut as the model's input is cut."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ttreg_interp.report.thumbnails import LONGEST_SIDE, thumbnails

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PREPROCESS = v2.Compose(
    [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
)


def photo(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


def test_preprocessing_is_undone_whatever_its_mean_and_scale():
    image = photo(20, 30)
    pixels = PREPROCESS(Image.fromarray(image.numpy()))[None]
    small = thumbnails(pixels, PREPROCESS)
    assert (small[0].int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 600), (128, 256)),
        ((512, 512), (256, 256)),
        ((32, 48), (32, 48)),
        ((4, 900), (1, 256)),
    ],
)
def test_large_images_shrink_in_proportion(size, expected):
    small = thumbnails(torch.rand(1, 3, *size), None)
    assert small.shape == (1, *expected, 3)
    assert max(small.shape[1:3]) <= LONGEST_SIDE


def test_without_preprocessing_the_own_range_is_black_to_white():
    small = thumbnails(5 * torch.randn(2, 3, 16, 16) + 9, None)
    assert (small.amin(), small.amax()) == (0, 255)


def test_grey_images_have_three_equal_channels():
    small = thumbnails(torch.rand(1, 1, 8, 8), None)
    assert torch.equal(small[..., 0], small[..., 2])


def test_an_image_of_one_colour_is_no_division_by_zero():
    assert thumbnails(torch.full((1, 3, 8, 8), 0.3), None).amax() == 0
