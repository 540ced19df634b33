"""The page as a file: everything inside it, nothing of a name or label that runs."""

import json
from html.parser import HTMLParser

import pytest
import torch

from tests.report.models import KINDS, Files, pixels_for, tiny
from ttreg_interp.errors import ArtifactError
from ttreg_interp.interventions import Empty, TestTimeRegister
from ttreg_interp.report.html import write_report
from ttreg_interp.report.record import record_run

ARMS = {"intact": Empty(), "register": TestTimeRegister({0: [3]})}
HOSTILE = "<img src=x onerror=alert(1)>.png"
HOSTILE_FILES = (HOSTILE, "<!--<script>alert(2).png", "\"'`{{7*7}}${1}&amp;.png")
HOSTILE_LABEL = "</script><script>alert(3)</script>"


class Reader(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self.shown: list[str] = []
        self._id: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id", "") if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._id = None

    def handle_data(self, data):
        if self._id is None:
            self.shown.append(data)
        else:
            self.scripts[self._id] = data


def report(tmp_path, model=None, **options) -> Reader:
    model = model or tiny()
    images = options.pop("images", pixels_for(model))
    folder = record_run(model, images, options.pop("arms", ARMS), tmp_path / "run", **options)
    return Reader(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fetched_from_anywhere(tmp_path, kind):
    page = report(tmp_path, tiny(kind), neurons={0: [3]})
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name, "") or attributes[name].startswith("data:")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_every_map_is_inside(tmp_path):
    page = report(tmp_path, neurons={0: [3]})
    expected = {
        f"map-{arm}-{image}-{kind}"
        for arm in (0, 1)
        for image in (0, 1, 2)
        for kind in ("norms", "neurons", "exact", "tokens", "heads")
    }
    assert {name for name in page.scripts if name.startswith("map-")} == expected
    facts = json.loads(page.scripts["facts"])
    assert [arm["prefix"] for arm in facts["arms"]] == [["CLS"], ["CLS", "test-time register 0"]]


def test_names_and_labels_are_text_whatever_they_hold(tmp_path):
    model = tiny()
    model.spec = HOSTILE_LABEL
    arms = {HOSTILE: Empty(), HOSTILE_LABEL: TestTimeRegister({0: [3]})}
    summary = {HOSTILE: [{HOSTILE_LABEL: HOSTILE}], "neurons": [{"layer": HOSTILE_FILES[2]}]}
    source = Files(pixels_for(model), HOSTILE_FILES)
    page = report(tmp_path, model, images=source, arms=arms, summary=summary)
    plain = report(tmp_path / "plain", images=pixels_for(tiny()), summary={"a": [{"b": 1}], "c": [{"d": 2}]})  # fmt: skip
    count = lambda page, tag: sum(found == tag for found, _ in page.tags)
    for tag in ("script", "img", "style", "iframe"):
        assert count(page, tag) == count(plain, tag)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = "".join(page.shown)
    assert HOSTILE in shown
    assert "{{7*7}}" in shown
    assert [image["name"] for image in json.loads(page.scripts["facts"])["images"]] == list(
        HOSTILE_FILES
    )


def test_the_report_goes_where_it_is_told(tmp_path):
    folder = record_run(tiny(), pixels_for(tiny()), ARMS, tmp_path / "run")
    assert write_report(folder) == folder / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(folder, elsewhere) == elsewhere
    assert elsewhere.read_bytes() == (folder / "report.html").read_bytes()


def test_no_run_directory_no_report(tmp_path):
    with pytest.raises(ArtifactError, match="no readable run directory"):
        write_report(tmp_path)


def test_the_stated_error_is_that_of_the_code(tmp_path):
    page = report(tmp_path)
    n_keys = tiny().layout().n_tokens
    shown = " ".join(page.shown)
    assert f"at most 1.1% of (attention + {1 / n_keys:.2g})" in shown


@pytest.mark.assets
def test_twelve_images_of_a_real_model_with_twelve_layers_stay_below_10_mb(tmp_path, assets):
    from PIL import Image

    from ttreg_interp.hooked import load

    weights = assets / "vit_tiny_augreg_in1k" / "model.safetensors"
    model = load(f"timm:vit_tiny_patch16_224@{weights}")
    files = sorted((assets / "imagenet_sample").glob("*.jpg"))[:12]
    pixels = torch.stack([model.preprocess(Image.open(file).convert("RGB")) for file in files])
    arms = {"intact": Empty(), "register": TestTimeRegister({6: [3], 7: [5]})}
    folder = record_run(model, pixels, arms, tmp_path, neurons={6: [3], 7: [5]})
    page = write_report(folder)
    rows = json.loads((folder / "run.json").read_text())["arms"][0]["rows"]
    assert rows["tokens"] == {"query": 1, "key": 1, "by_head": False}
    assert page.stat().st_size < 10_000_000
