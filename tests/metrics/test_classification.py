"""Top-k, zero-shot and nearest neighbours: equal to trusted implementations, and fair in ties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.classification import (
    Labelled,
    knn_votes,
    topk_correct,
    zero_shot_classifier,
    zero_shot_logits,
)

from .laws import law, seeds


def labelled(seed: int, images: int = 40, classes: int = 4, d_model: int = 6) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    features = torch.randn(images, d_model, generator=generator)
    features[torch.arange(images), labels] += 2
    return Labelled(features, labels)


@law
@given(seeds, st.integers(1, 4))
def test_topk_is_that_of_scikit_learn(seed, k):
    data = labelled(seed)
    logits = data.features[:, :4]
    # scikit-learn warns that a score of 1 is sure when every class counts
    expected = top_k_accuracy_score(data.labels, logits, k=k, labels=range(4)) if k < 4 else 1.0
    assert topk_correct(logits, data.labels, k).double().mean().item() == pytest.approx(expected)


@law
@given(st.integers(1, 6), st.integers(2, 6))
def test_a_model_that_says_nothing_is_right_by_chance(k, classes):
    k = min(k, classes)
    labels = torch.arange(classes)
    assert topk_correct(torch.zeros(classes, classes), labels, k).sum() == k


@law
@given(seeds)
def test_more_classes_count_more_images_are_right(seed):
    data = labelled(seed)
    logits = data.features.round()
    by_k = torch.stack([topk_correct(logits, data.labels, k) for k in range(1, 7)]).int()
    assert (by_k.diff(dim=0) >= 0).all()
    assert by_k[-1].all()


def test_a_class_direction_is_the_normalised_mean_of_unit_prompts():
    """As open_clip builds its classifier: normalise, average over templates, normalise."""
    generator = torch.Generator().manual_seed(0)
    text = [5 * torch.randn(prompts, 8, generator=generator) for prompts in (1, 3, 80)]
    classifier = zero_shot_classifier(text)
    for direction, prompts in zip(classifier, text, strict=True):
        mean = (prompts / prompts.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(direction, mean / mean.norm())


def test_zero_shot_logits_see_the_direction_of_an_image_only():
    images, classifier = labelled(0).features, zero_shot_classifier([torch.eye(6)[:2]] * 2)
    logits = zero_shot_logits(images, classifier)
    torch.testing.assert_close(zero_shot_logits(7 * images, classifier), logits)
    expected = 100 * torch.nn.functional.cosine_similarity(images[:, None], classifier, dim=-1)
    torch.testing.assert_close(logits, expected)


def test_zero_shot_logits_of_half_precision_images_take_a_full_precision_classifier():
    images = labelled(0).features.to(torch.bfloat16)
    assert zero_shot_logits(images, torch.eye(6)).dtype == torch.bfloat16


@law
@given(seeds, st.integers(1, 30), st.sampled_from([0.02, 0.07, 1.0]))
def test_nearest_neighbours_are_those_of_scikit_learn(seed, k, temperature):
    bank, queries = labelled(seed), labelled(seed + 1).features
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: math.e ** ((1 - distance) / temperature)
    ).fit(bank.features.double(), bank.labels)
    votes = knn_votes(bank, queries, k, temperature)
    probabilities = votes / votes.sum(1, keepdim=True)
    expected = torch.from_numpy(reference.predict_proba(queries.double()))
    torch.testing.assert_close(probabilities, expected)


def test_votes_do_not_depend_on_how_queries_and_bank_are_chunked(monkeypatch):
    bank, queries = labelled(0), labelled(1).features
    whole = knn_votes(bank, queries)
    monkeypatch.setattr("ttreg_interp.metrics.classification._AT_ONCE", 3)
    monkeypatch.setattr("ttreg_interp.metrics.rows.PIECE", 4 * 5 * bank.features.shape[1])
    torch.testing.assert_close(knn_votes(bank, queries), whole)


def test_a_small_temperature_leaves_the_decision_to_the_nearest_image():
    bank = Labelled(torch.tensor([[1.0, 0.1], [1.0, 0.3], [1.0, 0.3]]), torch.tensor([1, 0, 0]))
    query = torch.tensor([[1.0, 0.0]])
    winners = [knn_votes(bank, query, 3, t).argmax(1).item() for t in (0.001, 10.0)]
    assert winners == [1, 0]


DATA = labelled(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topk_correct(DATA.features, DATA.labels, 7), r"k lies in 1 .. 6 .*; found 7"),
        (
            lambda: topk_correct(DATA.features, DATA.labels + 3),
            "labels holds class 6; the classes are 0 .. 5",
        ),
        (lambda: topk_correct(DATA.features / 0, DATA.labels), "logits of shape .* NaN"),
        (lambda: Labelled(DATA.features, DATA.labels[:3]), "Found 40 features and 3 labels"),
        (lambda: Labelled(DATA.features, DATA.labels - 1), "Classes count from 0; found label -1"),
        (lambda: Labelled(DATA.features[:0], DATA.labels[:0]), "features is empty"),
        (lambda: zero_shot_classifier([]), "Found no class"),
        (lambda: zero_shot_classifier([DATA.features[:0]]), "text of class 0 is empty"),
        (lambda: zero_shot_logits(DATA.features / 0, torch.eye(6)), "images of shape .* NaN"),
        (lambda: knn_votes(DATA, DATA.features, k=41), r"k lies in 1 .. 40 .*; found 41"),
        (lambda: knn_votes(DATA, DATA.features, temperature=0.0), "temperature is positive"),
    ],
)
def test_what_cannot_be_classified_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
