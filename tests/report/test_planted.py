"""What a person sees of a planted model: outliers in the intact arm, none under the register."""

from pathlib import Path

import pytest

from tests.report.browser import DESKTOP, PHONE, browsing, colours, keep, opened
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import Empty, NeuronSet, TestTimeRegister, ZeroNeurons
from ttreg_interp.report import record_run, write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    pytest.importorskip("skimage", reason="scikit-image, which holds the photographs, is missing")
    from ttreg_interp.testbed.photographs import photograph_tensor
    from ttreg_interp.testbed.planted import planted_vit

    planted = planted_vit()
    model = HookedViT.wrap(planted.module)
    model.spec = "testbed:planted"
    neurons = NeuronSet.of(planted.truth)
    control = neurons.matched_random(0, model.cfg.d_mlp)
    arms = {
        "intact": Empty(),
        "register": TestTimeRegister(neurons),
        "random control": ZeroNeurons(control),
    }
    summary = {
        "calibration": [{"k": k, "outliers_left": 1 - k / 6, "drift": k / 100} for k in range(7)],
        "causal": [
            {"arm": arm, "outliers left": {"low": low, "estimate": low + 0.04, "high": low + 0.08}}
            for arm, low in (("register", 0.0), ("random control", 0.9))
        ],
    }
    folder = tmp_path_factory.mktemp("planted")
    pixels = photograph_tensor(224)[:4]
    return write_report(record_run(model, pixels, arms, folder, neurons=neurons, summary=summary))


def bright(visit, side: int) -> int:
    """Patches in the upper half of the norm scale: viridis is greener than 145 there."""
    shown = colours(visit.page, "#norm-pair canvas")[side]
    return sum(green > 145 for _, green, _ in shown)


@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [("desktop", DESKTOP, False), ("phone", PHONE, False), ("dark", DESKTOP, True)],
)
def test_the_register_takes_the_outliers_off_the_map(page, name, size, dark):
    from playwright.sync_api import expect

    with browsing() as browser, opened(browser, page, size=size, dark=dark) as visit:
        for image in range(4):
            visit.page.locator("#strip button").nth(image).click()
            expect(visit.page.locator("#image-name")).to_have_text(f"image {image}")
            expect(visit.page.locator("#maps")).to_have_attribute("aria-busy", "false")
            assert bright(visit, 0) > 0
            assert bright(visit, 1) == 0
            row = visit.page.locator("#shares li", has_text="test-time register 0")
            intact, register = row.locator("b").all_inner_texts()
            assert intact == "–"
            assert float(register.rstrip("%")) > 50
        keep(visit.page, f"report-{name}")
        visit.page.locator("#right").select_option("random control")
        expect(visit.page.locator("#maps")).to_have_attribute("aria-busy", "false")
        assert bright(visit, 0) == bright(visit, 1) > 0
        assert visit.complaints == []
