"""Columns on disk: any rows in any order, as they were written; damage is told with the file."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttreg_interp.data.annotated import Depth, Mask
from ttreg_interp.errors import ArtifactError, DataError
from ttreg_interp.evaluations import run as running
from ttreg_interp.evaluations.dense import DepthProbe, SegmentationProbe
from ttreg_interp.evaluations.probes import LinearProbe, NearestNeighbours
from ttreg_interp.evaluations.records import Chunk, Records, file_of, write
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.metrics import rows
from ttreg_interp.metrics.dense_probes import DenseProbe

from .small import classifier, images_of

SIZES = (3, 0, 1, 4)


def records(folder, values: torch.Tensor, key: str = "intact/features") -> Records:
    """Chunks of 3, 0, 1 and 4 images."""
    chunks, start = [], 0
    for number, size in enumerate(SIZES):
        chunk = Chunk("test", number, range(start, start + size))
        kept = {key: values[start : start + size], "intact/other": torch.zeros(size, 7)}
        write(file_of(folder, chunk), kept if size else {}, list(chunk.images), [])
        chunks.append(chunk)
        start += size
    return Records(folder, "test", tuple(chunks))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.int64, torch.bool]
)
def test_rows_come_back_as_they_were_written(tmp_path, dtype):
    values = (10 * torch.randn(8, 2, 3)).to(dtype)
    own = records(tmp_path, values)
    column = own.rows("intact", "features")
    assert (column.shape, column.dtype, len(column)) == ((8, 2, 3), dtype, 8)
    assert torch.equal(own.column("intact", "features"), values)

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=12))
    @settings(max_examples=30, deadline=None)
    def law(places):
        assert torch.equal(column[torch.tensor(places)], values[places])

    law()


def test_damage_is_told_with_the_file(tmp_path):
    own = records(tmp_path, torch.randn(8, 50))
    file = file_of(tmp_path, own.chunks[-1])
    with pytest.raises(ArtifactError, match="000000.safetensors has no record 'zero/features'"):
        own.rows("zero", "features")
    column = own.rows("intact", "features")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ArtifactError, match="became shorter while it was read"):
        column[torch.arange(8)]
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot be read again"):
        column[torch.arange(8)]
    with pytest.raises(ArtifactError, match="If a shard has not run yet, run it"):
        own.rows("intact", "features")


def test_chunks_of_other_shapes_are_told(tmp_path):
    own = records(tmp_path, torch.randn(8, 5))
    write(file_of(tmp_path, own.chunks[0]), {"intact/features": torch.zeros(3, 6)}, [0, 1, 2], [])
    with pytest.raises(ArtifactError, match=r"holds rows of \(5,\).*of \(6,\)"):
        own.rows("intact", "features")


def test_a_column_of_no_image_is_told(tmp_path):
    write(file_of(tmp_path, Chunk("test", 0, range(1))), {}, [], ["broken"])
    with pytest.raises(ArtifactError, match="no image of the test set was recorded"):
        Records(tmp_path, "test", (Chunk("test", 0, range(1)),)).rows("intact", "features")


PROTOCOLS = [
    (SegmentationProbe(probe=DenseProbe(epochs=2, batch_size=3, seeds=(0,)), folds=2), Mask),
    (DepthProbe(probe=DenseProbe(epochs=2, batch_size=3, seeds=(0,)), folds=2), Depth),
    (LinearProbe(folds=2, grid=(0.1, 0.01), seeds=(0,)), int),
    (LinearProbe(folds=2, grid=(0.1, 0.5), seeds=(0,), method="sgd"), int),
    (NearestNeighbours(folds=2, k=2), int),
]


@pytest.mark.parametrize(("protocol", "kind"), PROTOCOLS)
def test_neither_chunks_nor_pieces_change_a_result(protocol, kind, tmp_path, monkeypatch):
    model, data = classifier(), images_of(kind, 9)
    whole = evaluate(protocol, model, data, {}, tmp_path / "whole")
    monkeypatch.setattr(running, "CHUNK", 2)
    monkeypatch.setattr(rows, "PIECE", 1)  # one image each
    apart = evaluate(protocol, model, data, {}, tmp_path / "apart")
    for mine, theirs in zip(apart.rows, whole.rows, strict=True):
        assert mine.value.estimate == pytest.approx(theirs.value.estimate, rel=1e-5)


def test_sixteen_bits_on_disk_are_half_the_file_and_much_the_same(tmp_path):
    probe = DenseProbe(epochs=2, seeds=(0,))
    found = {
        kind: evaluate(
            DepthProbe(probe=probe, folds=2, stored_as=kind),
            classifier(),
            images_of(Depth, 6),
            {},
            tmp_path / kind,
        )["intact", "rmse [m]"].value.estimate
        for kind in ("float32", "bfloat16", "float16")
    }
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)
    assert found["float16"] == pytest.approx(found["float32"], rel=0.005)


@pytest.mark.parametrize(
    ("protocol", "kind", "empty"),
    [
        (
            SegmentationProbe(probe=DenseProbe(epochs=2, batch_size=1, seeds=(0,)), folds=2),
            Mask,
            255,
        ),
        (DepthProbe(probe=DenseProbe(epochs=2, batch_size=1, seeds=(0,)), folds=2), Depth, 0),
    ],
)
def test_an_image_without_a_labelled_pixel_teaches_nothing_and_is_counted(
    protocol, kind, empty, tmp_path
):
    from dataclasses import replace

    data = images_of(kind, 7)

    def nothing(size):
        values = torch.full(size, empty)
        return Mask(values, 255) if kind is Mask else Depth(values.float())

    items = list(data.items)
    items[3] = replace(items[3], read_target=nothing)
    rest = replace(data, items=(*items[:3], *items[4:]))
    found = evaluate(protocol, classifier(), replace(data, items=tuple(items)), {}, tmp_path / "a")
    expected = evaluate(protocol, classifier(), rest, {}, tmp_path / "b")
    assert found.rows == expected.rows
    assert found.details["intact"]["images without a labelled pixel"] == {"test": 1}
    with pytest.raises(DataError, match="No image of the test set has a labelled pixel"):
        none = tuple(replace(item, read_target=nothing) for item in items)
        evaluate(protocol, classifier(), replace(data, items=none), {}, tmp_path / "c")


def test_a_segmentation_probe_takes_more_classes_than_a_byte_holds(tmp_path):
    from dataclasses import replace

    data = images_of(Mask, 4)
    far = replace(data.items[0], read_target=lambda size: Mask(torch.full(size, 700), 1000))
    protocol = SegmentationProbe(probe=DenseProbe(epochs=1, seeds=(0,)), folds=2)
    found = evaluate(
        protocol, classifier(), replace(data, items=(far, *data.items[1:])), {}, tmp_path
    )
    assert found.n_images == {"test": 4}
