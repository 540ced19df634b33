"""The report in a browser: opened from disk, offline, used by mouse and by keyboard."""

import re
from pathlib import Path

import pytest
import torch

from tests.report.browser import DESKTOP, PHONE, browsing, colours, opened
from tests.report.models import KINDS, Files, pixels_for, tiny
from tests.report.test_html import HOSTILE_FILES, HOSTILE_LABEL
from ttreg_interp.interventions import AttentionBias, Empty, TestTimeRegister, ZeroNeurons
from ttreg_interp.report import plan as plans
from ttreg_interp.report.codes import AttentionCode
from ttreg_interp.report.html import write_report
from ttreg_interp.report.record import record_run

NEURONS = {0: [3, 4], 2: [7]}
ARMS = {"intact": Empty(), "register": TestTimeRegister(NEURONS), "zeroed": ZeroNeurons(NEURONS)}


def made(tmp_path: Path, kind: str = "[CLS]", **options):
    """A model, and its report."""
    model = tiny(kind)
    options = {"images": pixels_for(model), "arms": ARMS, "neurons": NEURONS} | options
    folder = record_run(model, options.pop("images"), options.pop("arms"), tmp_path, **options)
    return model, write_report(folder)


@pytest.fixture(scope="module")
def browser():
    with browsing() as one:
        yield one


def ready(visit) -> None:
    from playwright.sync_api import expect

    expect(visit.page.locator("#maps")).to_have_attribute("aria-busy", "false")


def readout(page) -> list[tuple[float, float | None]]:
    """Norm and attention (None where the arm has no such query) of each arm on show."""
    text = page.locator("#readout").inner_text()
    found = re.findall(r"norm ([\d.e+-]+)(?:, attention ([\d.e+-]+)%)?", text)
    return [(float(norm), float(share) / 100 if share else None) for norm, share in found]


def click_patch(page, field: str, patch: int, layout) -> None:
    box = page.locator(field).bounding_box()
    row, column = divmod(patch, layout.width)
    page.locator(field).click(
        position={
            "x": (column + 0.5) / layout.width * box["width"],
            "y": (row + 0.5) / layout.height * box["height"],
        }
    )


def expected(model, intervention, layer: int, query, patch: int, head: int | None = None):
    """Norm and attention of a patch, from the model's own cache, for image 0."""
    with model.intervened(intervention):
        _, cache = model.run_with_cache(pixels_for(model)[:1])
    layout = cache.layout
    pattern = cache["pattern", layer][0]
    pattern = pattern.mean(dim=0) if head is None else pattern[head]
    start = layout.patches.start
    if query == "mean":
        row = pattern[start:].mean(dim=0)
    else:
        row = pattern[query if isinstance(query, slice) else start + query].reshape(-1)
    norm = cache["resid_post", layer][0].norm(dim=-1)[start + patch]
    return float(norm), float(row[start + patch])


def check_values(visit, model, arms, code: AttentionCode, **where) -> None:
    ready(visit)
    shown = readout(visit.page)
    assert len(shown) == len(arms)
    for (norm, share), intervention in zip(shown, arms, strict=True):
        true_norm, true_share = expected(model, intervention, **where)
        assert norm == pytest.approx(true_norm, rel=6e-3)  # shown with three digits
        allowed = code.relative_error * (true_share + 1 / code.n_keys) + 6e-3 * true_share
        assert abs(share - true_share) <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_a_clicked_token_shows_the_values_of_the_cache(browser, tmp_path, kind):
    model, page = made(tmp_path / "run", kind)
    layout, code = model.layout(), AttentionCode(model.layout().n_tokens)
    with opened(browser, page) as visit:
        ready(visit)
        for field, patch, layer in (
            ("#norm-pair .field >> nth=0", 0, 2),
            ("#attention-pair .field >> nth=1", layout.n_patches - 1, 0),
            ("#picture", layout.width, 1),
        ):
            visit.page.locator("#layer").fill(str(layer))
            click_patch(visit.page, field, patch, layout)
            where = {"layer": layer, "query": patch, "patch": patch}
            check_values(visit, model, (Empty(), ARMS["register"]), code, **where)
        visit.page.locator("#right").select_option("zeroed")
        check_values(visit, model, (Empty(), ARMS["zeroed"]), code, **where)
        visit.page.locator("#head").select_option("1")
        check_values(visit, model, (Empty(), ARMS["zeroed"]), code, head=1, **where)
        assert visit.complaints == []


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_tokens_are_chips_and_the_grid_is_the_layouts(browser, tmp_path, kind):
    from playwright.sync_api import expect

    model, page = made(tmp_path / "run", kind)
    layout = model.layout()
    with opened(browser, page) as visit:
        ready(visit)
        names = [name.replace("CLS", "[CLS]") for name in layout.row_names()]
        names = [*names[: layout.n_prefix], "test-time register 0", "mean over patches"]
        chips = visit.page.locator("#chips .chip:visible")
        assert chips.all_inner_texts() == names
        pressed = visit.page.locator("#chips [aria-pressed=true]:visible")
        expect(pressed).to_have_text("[CLS]" if layout.n_cls else "mean over patches")
        for canvas in visit.page.locator(".pair canvas").all():
            size = canvas.evaluate("c => [c.width, c.height]")
            assert size == [layout.width, layout.height]
        for field in visit.page.locator(".field").all():
            box = field.bounding_box()
            assert box["height"] / box["width"] == pytest.approx(
                layout.height / layout.width, rel=0.02
            )
        visit.page.locator("#chips").get_by_text("test-time register 0").click()
        expect(visit.page.locator("#attention-pair .absent").first).to_be_visible()
        expect(visit.page.locator("#attention-pair .absent").last).to_be_hidden()
        assert visit.complaints == []


def test_chips_show_the_rows_of_their_token(browser, tmp_path):
    kind = "trained registers"
    model, page = made(tmp_path / "run", kind)
    layout, code = model.layout(), AttentionCode(model.layout().n_tokens)
    patch = 5
    with opened(browser, page) as visit:
        ready(visit)
        for chip, query in (
            ("[CLS]", slice(0, 1)),
            ("trained register 1", slice(2, 3)),
            ("mean over patches", "mean"),
        ):
            visit.page.locator("#chips").get_by_text(chip, exact=True).click()
            visit.page.locator("#norm-pair .field").first.hover(
                position=middle(patch, visit, layout)
            )
            where = {"layer": 2, "query": query, "patch": patch}
            check_values(visit, model, (Empty(), ARMS["register"]), code, **where)


def middle(patch: int, visit, layout) -> dict[str, float]:
    box = visit.page.locator("#norm-pair .field").first.bounding_box()
    row, column = divmod(patch, layout.width)
    return {
        "x": (column + 0.5) / layout.width * box["width"],
        "y": (row + 0.5) / layout.height * box["height"],
    }


def test_both_sides_have_one_colour_scale(browser, tmp_path):
    model, page = made(tmp_path / "run")
    with opened(browser, page) as visit:
        ready(visit)
        visit.page.locator("#layer").fill("1")
        ready(visit)
        maps = torch.tensor(colours(visit.page, "#norm-pair canvas"))
        norms = []
        for intervention in (Empty(), ARMS["register"]):
            with model.intervened(intervention):
                _, cache = model.run_with_cache(pixels_for(model)[:1])
            norms.append(cache["resid_post", 1][0].norm(dim=-1)[cache.layout.patches])
        values = torch.cat(norms)
        green = maps[..., 1].reshape(-1)[values.argsort()]  # viridis grows ever greener
        assert (green.diff() >= 0).all()
        assert green[0] == 1
        assert green[-1] == 231
        low, _, high = visit.page.locator("#norm-pair .tick").all_inner_texts()
        assert float(low) == pytest.approx(float(values.min()), rel=6e-3)
        assert float(high) == pytest.approx(float(values.max()), rel=6e-3)


def test_the_page_is_used_by_keyboard_alone(browser, tmp_path):
    from playwright.sync_api import expect

    model, page = made(tmp_path / "run")
    with opened(browser, page) as visit:
        ready(visit)
        keys = visit.page.keyboard
        visit.page.locator("#layer").focus()
        keys.press("ArrowLeft")
        expect(visit.page.locator("#norm-pair .title")).to_have_text("Patch norm after layer 1")
        visit.page.locator("#norm-pair .field").first.focus()
        keys.press("ArrowDown")  # from nowhere to the middle
        chip = visit.page.locator("#patch-chip")
        expect(chip).to_have_text("patch (1, 1)")
        keys.press("ArrowRight")
        keys.press("ArrowUp")
        expect(chip).to_have_text("patch (0, 2)")
        for _ in range(4):
            keys.press("ArrowUp")
        expect(chip).to_have_text("patch (0, 2)")
        visit.page.locator("#strip button").nth(1).focus()
        keys.press("Enter")
        expect(visit.page.locator("#image-name")).to_have_text("image 1")
        label = visit.page.locator("#norm-pair .field").first.get_attribute("aria-label")
        assert label.startswith("norm map of intact, layer 1, from ")
        assert visit.complaints == []


def test_the_first_tab_stops_are_in_reading_order(browser, tmp_path):
    _, page = made(tmp_path / "run")
    with opened(browser, page) as visit:
        ready(visit)
        visited = []
        for _ in range(8):
            visit.page.keyboard.press("Tab")
            visited.append(visit.page.evaluate("document.activeElement.id"))
        assert visited == ["theme", "", "", "", "layer", "head", "right", "log"]


def test_nothing_is_requested_but_the_page_itself(browser, tmp_path):
    _, page = made(tmp_path / "run")
    with opened(browser, page) as visit:
        ready(visit)
        visit.page.locator("#strip button").last.click()
        visit.page.locator("#over").check()
        assert visit.requests == [page.as_uri()]
        assert visit.complaints == []


def test_hostile_names_do_not_run(browser, tmp_path):
    from playwright.sync_api import expect

    model = tiny()
    source = Files(pixels_for(model), HOSTILE_FILES)
    arms = {HOSTILE_FILES[0]: Empty(), HOSTILE_LABEL: TestTimeRegister({0: [3]})}
    _, page = made(tmp_path / "run", images=source, arms=arms)
    with opened(browser, page) as visit:
        ready(visit)
        for i, name in enumerate(HOSTILE_FILES):
            visit.page.locator("#strip button").nth(i).click()
            expect(visit.page.locator("#image-name")).to_have_text(name)
        click_patch(visit.page, "#picture", 3, model.layout())
        ready(visit)
        assert HOSTILE_FILES[0] in visit.page.locator("#readout").inner_text()
        assert visit.complaints == []


def test_attention_to_a_bias_is_listed(browser, tmp_path):
    shape = (3, 2, 16)
    arms = {"intact": Empty(), "bias": AttentionBias(torch.zeros(shape), torch.zeros(shape))}
    model, page = made(tmp_path / "run", arms=arms)
    with model.intervened(arms["bias"]):
        _, cache = model.run_with_cache(pixels_for(model)[:1])
    share = float(cache["pattern", 2][0, :, 0, 0].mean())
    with opened(browser, page) as visit:
        ready(visit)
        row = visit.page.locator("#shares li", has_text="attention bias")
        intact, bias = row.locator("b").all_inner_texts()
        assert intact == "0%"
        assert float(bias.rstrip("%")) / 100 == pytest.approx(share, rel=6e-3)


@pytest.mark.parametrize("budget", [20_000, 4_000])
def test_blocks_are_named_and_hold_the_mean_of_their_patches(
    browser, tmp_path, monkeypatch, budget
):
    monkeypatch.setattr(plans, "BUDGET", {"tokens": budget, "heads": budget})
    model = tiny("non-square", depth=2)
    arms = {"intact": Empty(), "register": TestTimeRegister({0: [3]})}
    folder = record_run(model, pixels_for(model), arms, tmp_path / "run")
    layout, page = model.layout(), write_report(folder)
    plan = plans.plan_arms(model, pixels_for(model).shape, arms, 3)["intact"]
    side = plan.rows["tokens"].queries.side
    patch, layer = 7, 1
    with opened(browser, page) as visit:
        ready(visit)
        click_patch(visit.page, "#picture", patch, layout)
        title = visit.page.locator("#attention-pair .title").inner_text()
        assert (side == 1) == (f"of {'patch (1, 2)'} in" in title)
        shown = readout(visit.page)[0][1]
    _, cache = model.run_with_cache(pixels_for(model)[:1])
    pattern = cache["pattern", layer].mean(dim=1, keepdim=True)
    row = plan.rows["tokens"].read(pattern)[0, 0]
    corner = divmod(patch, layout.width)
    columns = plan.rows["tokens"].queries.grid[1]
    query = layout.patches.start + corner[0] // side * columns + corner[1] // side
    key_side = plan.rows["tokens"].keys.side
    columns = plan.rows["tokens"].keys.grid[1]
    key = 1 + layout.patches.start + corner[0] // key_side * columns + corner[1] // key_side
    top, left = corner[0] // key_side * key_side, corner[1] // key_side * key_side
    members = min(key_side, layout.height - top) * min(key_side, layout.width - left)
    share, code = float(row[query, key]), plan.code
    allowed = code.relative_error * (share + 1 / code.n_keys) + 6e-3 * share
    assert abs(shown * members - share) <= allowed


def test_one_arm_and_no_neurons_make_a_page(browser, tmp_path):
    _, page = made(tmp_path / "run", arms={"intact": Empty()}, neurons=None)
    with opened(browser, page) as visit:
        ready(visit)
        assert visit.page.locator(".pair canvas").count() == 2
        assert visit.page.locator("#neuron-maps").count() == 0
        assert visit.complaints == []


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, False), (PHONE, True)])
def test_nothing_sticks_out_of_the_window(browser, tmp_path, size, dark):
    summary = {"causal": [{"arm": "a" * 60, "effect": {"low": 0.1, "estimate": 0.2, "high": 0.3}}]}
    _, page = made(tmp_path / "run", summary=summary)
    with opened(browser, page, size=size, dark=dark) as visit:
        ready(visit)
        width = visit.page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0]
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 3 * 128) == dark
        visit.page.locator("#theme").click()
        turned = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert turned != background
        assert visit.complaints == []
