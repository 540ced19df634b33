"""The artefact: files, sets, and the refusal of what does not fit."""

import json
import logging

import pytest

from tests.discovery.models import Push, hooked, marked_vit, noise_images
from ttreg_interp.discovery import (
    FindConfig,
    RegisterNeurons,
    compare_neurons,
    find_register_neurons,
    published_lists,
)
from ttreg_interp.errors import ArtifactError, InterventionError
from ttreg_interp.interventions import NeuronSet


@pytest.fixture(scope="module")
def model():
    return hooked(marked_vit(Push(2, 7, (0, 5)), Push(1, 3, (9,), mark=1, along=1)))


@pytest.fixture(scope="module")
def found(model):
    return find_register_neurons(model, noise_images(), FindConfig(evidence=False))


def test_a_saved_artefact_reads_back_equal(found, tmp_path):
    path = found.save(tmp_path / "deep" / "neurons.json")
    assert RegisterNeurons.load(path) == RegisterNeurons.load(path)
    again = RegisterNeurons.load(path)
    assert again.to_dict() == json.loads(path.read_text())
    assert (again.neurons, again.ranking, again.threshold) == (
        found.neurons,
        found.ranking,
        found.threshold,
    )
    assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["neurons.json"]


def test_the_file_keeps_to_the_published_schema(found):
    body = found.to_dict()
    assert body["schema"] == "register-neurons/1"
    assert body["index_base"] == 0
    assert body["num_neurons"] == 2
    assert body["layer_to_neurons"] == {"1": [3], "2": [7]}
    assert body["architecture"] == {"layers": 4, "mlp_hidden": 256, "d_model": 64}
    assert isinstance(body["source"], str) and isinstance(body["selection"], str)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dinov2_vitl14_hub", 45),
        ("dinov2_vitl14_paper_named", 3),
        ("openclip_vitb16_paper_named", 9),
        ("dinov2_vitl14_pt_ranking_top200", 200),
        ("openclip_vitb16_laion2b_bansal_aptos_top100", 100),
        ("siglip2_base_dsr", 50),
        ("siglip2_so400m_dsr_merged", 72),
        ("openai_clip_vitb16_jroth", 185),
    ],
)
def test_published_lists_are_read_as_they_are(name, count):
    published = RegisterNeurons.published(name)
    assert len(published) == count
    assert "github" in str(published.provenance) or "arXiv" in str(published.provenance)


def test_every_published_list_is_read_and_says_where_it_is_from():
    assert len(published_lists()) == 15
    for name in published_lists():
        assert len(RegisterNeurons.published(name))
    with pytest.raises(ArtifactError, match="No published list 'mine'; there are dinov2_vitb14"):
        RegisterNeurons.published("mine")


def test_the_neurons_that_the_paper_names_leave_out_its_random_controls():
    named = RegisterNeurons.published("openclip_vitb16_paper_named")
    assert named.by_layer() == {
        3: (1074,),
        4: (1468,),
        5: (599, 846, 1419, 1869),
        6: (61, 980, 2372),
    }


def test_a_public_rerun_agrees_with_the_authors_list_as_recorded():
    """42 of 45, of the 45 best up to layer 17 (arXiv 2506.08010, A.4)."""
    hub = RegisterNeurons.published("dinov2_vitl14_hub")
    rerun = RegisterNeurons.published("dinov2_vitl14_bansal_aptos_top100")
    rows = [row[:2] for row in rerun.ranking if row[0] <= 17][:45]
    assert compare_neurons(hub, NeuronSet.of(rows)).shared == 42


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema None; readable are register-neurons/1, register-neuron-ranking/1"),
        ('{"schema": "register-neurons/2"}', "has schema 'register-neurons/2'"),
        ('{"schema": "register-neurons/1", "layer_to_neurons": {"a": [1]}}', "is damaged"),
        ('{"schema": "register-neurons/1", "layer_to_neurons": {"1": [-1]}}', "is damaged"),
        ('{"schema": "register-neuron-ranking/1", "ranking": [[1, 2]]}', "is damaged"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "neurons.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        RegisterNeurons.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="Cannot read neurons from .*No such file"):
        RegisterNeurons.load(tmp_path / "none.json")


def test_another_model_is_refused_or_warned_of(found, model, caplog):
    assert found.check_model(model) is found
    other = hooked(marked_vit(Push(2, 8, (0, 5))))
    with pytest.raises(ArtifactError, match="Found in .* with weights .*strict=False"):
        found.check_model(other)
    with caplog.at_level(logging.WARNING):
        assert found.check_model(other, strict=False) is found
    assert "with weights" in caplog.text


@pytest.mark.parametrize("neurons", [{9: [1]}, {1: [256]}])
def test_neurons_that_a_model_lacks_are_refused_whether_strict_or_not(model, neurons):
    elsewhere = RegisterNeurons(NeuronSet.of(neurons))
    for strict in (True, False):
        with pytest.raises(ArtifactError, match="layers 0 to 3 with neurons 0 to 255"):
            elsewhere.check_model(model, strict)


def test_a_list_without_a_hash_fits_any_model_that_has_its_neurons(model):
    assert len(RegisterNeurons(NeuronSet.of({1: [5]})).check_model(model)) == 1


def listed(neurons: dict, **fields) -> RegisterNeurons:
    ranking = tuple((layer, n, 1.0 / (n + 1)) for layer, items in neurons.items() for n in items)
    return RegisterNeurons(NeuronSet.of(neurons), ranking=ranking, **fields)


def test_union_and_intersection_are_those_of_sets():
    a, b = listed({1: [2, 3], 4: [5]}, caveats=("a",)), listed({1: [3], 6: [7]}, caveats=("b",))
    assert (a | b).by_layer() == {1: (2, 3), 4: (5,), 6: (7,)}
    assert (a & b).by_layer() == {1: (3,)}
    assert (a | b).neurons == (b | a).neurons
    assert (a | a).neurons == a.neurons
    assert (a | b).caveats == ("a", "b")
    assert {row[:2] for row in (a | b).ranking} == set((a | b).neurons)
    assert "union" in (a | b).provenance


def test_lists_of_different_models_do_not_mix():
    a, b = listed({1: [2]}, weights_hash="aa", model="x"), listed({1: [2]}, weights_hash="bb")
    with pytest.raises(ArtifactError, match="union of neurons of two models.*weights_hash"):
        _ = a | b
    narrow = listed({1: [2]}, architecture={"layers": 12})
    with pytest.raises(ArtifactError, match="intersection.*architecture"):
        _ = narrow & listed({1: [2]}, architecture={"layers": 24})


def test_top_takes_the_best_of_the_ranking(found):
    one = found.top(1)
    assert list(one) == [found.ranking[0][:2]]
    assert len(found.top(150)) == 150
    with pytest.raises(ArtifactError, match=r"top\(201\) of a ranking with 200 rows"):
        found.top(201)


def test_matched_random_has_as_many_in_every_layer_and_none_of_the_list(found):
    drawn = found.matched_random(seed=0)
    assert {layer: len(ns) for layer, ns in drawn.by_layer().items()} == {1: 1, 2: 1}
    assert not set(drawn) & set(found)
    assert drawn == found.matched_random(seed=0) != found.matched_random(seed=1)
    with pytest.raises(ArtifactError, match="does not say how many neurons"):
        RegisterNeurons(NeuronSet.of({1: [2]})).matched_random(0)


def test_it_says_in_words_what_it_holds(found):
    assert (
        repr(found) == "<RegisterNeurons of VisionTransformer: 2 neurons; layer 1: 3; layer 2: 7>"
    )
    assert "layer   2 neuron      7" in str(found)
    assert f"norm above {found.threshold:.4g} after block 2" in str(found)
    assert repr(RegisterNeurons(NeuronSet())) == "<RegisterNeurons of an unnamed model: no neurons>"


def test_comparing_two_lists_counts_by_layer():
    agreement = compare_neurons({5: [1, 2], 6: [9]}, {5: [2, 3]})
    assert (agreement.shared, agreement.only_first, agreement.only_second) == (1, 2, 1)
    assert agreement.jaccard == 0.25
    assert "layer   5: shared 1, only first 1, only second 1" in str(agreement)
    assert compare_neurons({}, {}).jaccard == 1


def test_a_picture_is_drawn_of_any_list(found, tmp_path):
    for name, neurons in (
        ("found", found),
        ("foreign", RegisterNeurons.published("dinov2_vitl14_hub")),
    ):
        neurons.plot(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_hub_gets_and_gives_the_same_file(found, tmp_path, monkeypatch):
    import huggingface_hub

    def upload(self, *, path_or_fileobj, path_in_repo, repo_id, token=None):
        (tmp_path / path_in_repo).write_bytes(path_or_fileobj)
        return f"{repo_id}@1 {token}"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_file", upload)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(tmp_path / filename)
    )
    assert found.push_to_hub("me/neurons", token="t") == "me/neurons@1 t"
    assert RegisterNeurons.from_pretrained("me/neurons").to_dict() == json.loads(
        json.dumps(found.to_dict())
    )


def test_interventions_refuse_an_empty_list_by_name():
    from ttreg_interp.interventions import TestTimeRegister

    with pytest.raises(InterventionError, match="without neurons"):
        TestTimeRegister(RegisterNeurons(NeuronSet()))
