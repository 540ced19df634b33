"""The Python of README and pages runs, on a small model where they name a large one."""

import re
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "docs/concepts/attention-bias.md",
    "docs/concepts/noop.md",
    "docs/how-to/evaluate.md",
    "docs/how-to/read-the-report.md",
    "docs/how-to/scale.md",
    "docs/reference/discovery.md",
    "docs/reference/interventions.md",
    "docs/reference/testbed-language.md",
]
"""Pages whose Python nothing else runs; tests of their own have the tutorial, the errors, `compare`,
`deploy`, `add-a-model` and `massive-activations`."""
TOLD = {
    "docs/how-to/nnsight.md": "its models are large; tests/backends runs what it says",
    "docs/reference/benchmarks.md": "its times are one machine's; tests/hooked runs what it says",
}
SMALL = "testbed:planted"
LARGE = re.compile(r'"(open_clip|hf|timm):[^"?]*"')


def blocks(page: str) -> list[str]:
    """Python that stands on a page, doctests left out: they are run where they come from."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if not block.startswith(">>>")]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What a page takes for granted: a model, images, neurons, an empty folder."""
    pytest.importorskip("skimage", reason="scikit-image holds the photographs")
    pytest.importorskip("matplotlib", reason="matplotlib draws the figures").use("agg")
    import ttreg_interp as tt
    from ttreg_interp.testbed import planted_vit, save_photographs

    monkeypatch.chdir(tmp_path)
    save_photographs("photos", size=112)
    model = tt.load(SMALL, image_size=112)
    quick = tt.FindConfig(evidence=False)
    monkeypatch.setattr(tt, "load", lambda spec, **options: model)
    monkeypatch.setattr(
        tt, "find_register_neurons", partial(tt.find_register_neurons, config=quick)
    )
    images = tt.images("photos", limit=12)
    batches = [batch.pixels for batch in images.batches(model.preprocess, 4)]
    neurons = tt.NeuronSet.of(planted_vit(image_size=112).truth)
    return {"model": model, "images": images, "neurons": neurons} | {
        "batches": batches,
        "pixels": batches[0],
    }


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, names):
    for block in blocks(page):
        exec(compile(LARGE.sub(f'"{SMALL}"', block), page, "exec"), names)


def test_no_page_with_python_is_left_out():
    own = ("tutorial", "compare", "deploy", "add-a-model", "massive-activations")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        name = str(page.relative_to(ROOT))
        if page.stem in own or page.parent.name == "errors" or not blocks(name):
            continue
        assert name in PAGES or name in TOLD, name
