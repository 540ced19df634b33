"""Patches that draw attention: found whether their norm stands out or not."""

import pytest
import torch

from tests.discovery.models import WIDTH, Push, direction, hooked, marked_vit, noise_images
from ttreg_interp.discovery import find_attention_artefacts, find_outliers
from ttreg_interp.discovery.attention_artefacts import received_and_norms

SINKS = (3, 9)


@torch.no_grad()
def sinking(vit, along: int, gain: float):
    """In block 3, every query of every head looks for a direction."""
    qkv = vit.blocks[3].attn.qkv
    d_head = WIDTH // 4
    for head in range(4):
        query, key = head * d_head, WIDTH + head * d_head
        qkv.weight[query : query + d_head], qkv.bias[query : query + d_head] = 0, 0
        qkv.bias[query] = 4
        qkv.weight[key : key + d_head] = 0
        qkv.weight[key] = gain * direction(along)
    return vit


@pytest.fixture(scope="module")
def quiet_sinks():
    """Two patches attract all attention by a direction of their own, and are no longer than others."""
    vit = sinking(marked_vit(), along=2, gain=2.5)
    with torch.no_grad():
        for place in SINKS:
            vit.pos_embed[0, 1 + place] *= 0.6
            vit.pos_embed[0, 1 + place] += 4 * direction(2)
    return hooked(vit)


def test_sinks_of_ordinary_norm_are_found_where_a_norm_threshold_finds_none(quiet_sinks):
    images = noise_images()
    assert not find_outliers(quiet_sinks, images).has_outliers
    report = find_attention_artefacts(quiet_sinks, images)
    last = report.layers[3]
    assert last.per_image == 2
    assert last.missed_by_norm == 1
    assert [row.threshold for row in report.layers[:3]] == [None] * 3


def test_sinks_that_are_norm_outliers_are_not_called_missed():
    model = hooked(sinking(marked_vit(Push(1, 5, SINKS)), along=0, gain=2.5))
    last = find_attention_artefacts(model, noise_images()).layers[3]
    assert (last.per_image, last.missed_by_norm, last.low_norm) == (2, 0, 0)
    assert last.correlation > 0.5


def test_attention_received_is_the_mean_of_the_pattern_s_columns(quiet_sinks):
    images = noise_images(4)
    received, norms = received_and_norms(quiet_sinks, images)
    _, cache = quiet_sinks.run_with_cache(images)
    for layer in range(4):
        columns = cache["pattern", layer].mean(dim=(1, 2))[:, 1:] * 17
        torch.testing.assert_close(received[layer], columns)
        torch.testing.assert_close(norms[layer], cache["resid_pre", layer][:, 1:].norm(dim=-1))


def test_the_report_is_readable(quiet_sinks):
    text = str(find_attention_artefacts(quiet_sinks, noise_images(8)))
    assert "missed by norm" in text
    assert text.splitlines()[2].split()[:2] == ["0", "none"]
