"""Photographs with a disc pasted in: what the scripts of the paper's downstream tables are tried on."""

import torch

from analyses.paper._composites import composites
from ttreg_interp.data.annotated import Depth, Mask, Objects


def test_a_composite_has_the_box_mask_and_depth_of_its_disc():
    image, objects = composites(Objects, 2).items[1].read()
    mask = composites(Mask, 2).items[1].read()[1].ids
    depth = composites(Depth, 2).items[1].read()[1].metres
    rows, columns = mask.nonzero(as_tuple=True)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert objects.boxes.tolist() == [[float(edge) for edge in edges]]
    assert torch.equal(depth == 1, mask == 1) and image.size == (224, 224)
