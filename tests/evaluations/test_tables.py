"""The scripts of the paper's downstream tables, on photographs with a disc pasted in."""

from importlib import import_module

import pytest
import torch

from ttreg_interp.data.annotated import Depth, Mask, Objects


@pytest.mark.parametrize(
    "name", ["tab02_dense_probes", "tab04_attention_segmentation", "tab05_lost"]
)
def test_a_script_says_what_each_arm_scores(name, tmp_path):
    script = import_module(f"analyses.paper.{name}")
    found = script.analyse(script.Config(out=tmp_path, image_size=112, limit=8))
    arms = {row["arm"] for row in found.numbers["rows"]}
    assert {"intact", "register", "random"} <= arms
    assert found.headline.startswith(("mIoU", "corloc")) and "8 test images" in found.words
    assert found.facts["n_images"] == {"test": 8}


def test_a_composite_has_the_box_mask_and_depth_of_its_disc():
    from analyses.paper._composites import composites

    image, objects = composites(Objects, 2).items[1].read()
    mask = composites(Mask, 2).items[1].read()[1].ids
    depth = composites(Depth, 2).items[1].read()[1].metres
    rows, columns = mask.nonzero(as_tuple=True)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert objects.boxes.tolist() == [[float(edge) for edge in edges]]
    assert torch.equal(depth == 1, mask == 1) and image.size == (224, 224)
