"""The explorer in a browser: an image is dropped, a register applied, a broken file refused."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.app.models import picture
from tests.report.browser import browsing, colours, keep
from ttreg_interp.interventions import (
    Intervention,
    MoveNeurons,
    NeuronSet,
    Positions,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.testbed import planted_vit

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'ttreg-interp[app]')")
pytest.importorskip("skimage", reason="scikit-image holds the photographs")
WAIT, START = 60_000, 240_000
"""Milliseconds: for an answer of the page, and for the server, which imports torch first."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """`ttreg explore` in a process of its own: its sockets and threads are no affair of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = f"from ttreg_interp.cli import main; main(['explore', '--port', '{port}'])"
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", command],
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"GRADIO_TEMP_DIR": str(folder)},
            stdout=log,
            stderr=log,
        )
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Until somebody listens at the port."""
    for _ in range(START // 200):
        assert server.poll() is None, "ttreg explore has stopped"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("ttreg explore does not answer")


@pytest.fixture(scope="module")
def page(address):
    """The explorer's page, open, with the first maps drawn; its requests to elsewhere."""
    with browsing() as browser:
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(WAIT)
        opened.elsewhere, opened.broken = [], []
        opened.on("request", lambda request: note(opened.elsewhere, request.url, address))
        opened.on("pageerror", lambda error: opened.broken.append(str(error)))
        opened.goto(address)
        opened.locator("#words table").wait_for()
        yield opened
        opened.close()


def planted() -> NeuronSet:
    return NeuronSet.of(planted_vit().truth)


def note(elsewhere: list[str], asked: str, home: str) -> None:
    if not asked.startswith((home, "data:", "blob:")):
        elsewhere.append(asked)


def numbers(page, name: str) -> list[float]:
    """A row of the table: intact and intervened."""
    row = page.locator("#words tr", has_text=name)
    return [float(cell.rstrip("%")) for cell in row.locator("td").all_inner_texts()[1:]]


def ratios(page) -> list[float]:
    return numbers(page, "largest / median")


def until(page, holds, what: str) -> None:
    """Wait until something holds; the page answers when the model has run."""
    end = time.monotonic() + WAIT / 1000
    while time.monotonic() < end:
        if holds():
            return
        page.wait_for_timeout(200)
    raise TimeoutError(f"not after {WAIT} ms: {what}")


def choose(page, kind: str) -> None:
    page.locator("#kind").get_by_text(kind, exact=True).click()


def taken_along(page, what: str) -> str:
    """What the page gives to take along: the file that its button downloads."""
    if not page.locator("#along").get_by_role("tab").first.is_visible():
        page.get_by_role("button", name="Take it along").click()
    page.locator("#along").get_by_role("tab").filter(has_text=what).click()
    with page.expect_download() as download:
        page.locator("#along").get_by_role("button", name="Download").locator(
            "visible=true"
        ).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def intervention(page) -> Intervention:
    return Intervention.from_json(taken_along(page, "intervention.json"))


def place(field, row: float, column: float, grid: int = 14) -> dict[str, float]:
    """The middle of a patch, in pixels of its map."""
    box = field.bounding_box()
    return {"x": (column + 0.5) / grid * box["width"], "y": (row + 0.5) / grid * box["height"]}


def test_a_register_shows_cleaner_maps_and_nothing_is_asked_of_the_network(page, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    picture().image.transpose(0).save(hostile)
    first = ratios(page)
    page.locator("#file input[type=file]").set_input_files(hostile)
    until(page, lambda: ratios(page) != first, "other numbers for another image")
    intact, register = ratios(page)
    assert intact > 10
    assert register < 2
    keep(page, "explorer-register")
    choose(page, "nothing")
    until(page, lambda: ratios(page) == [intact, intact], "two equal numbers")
    choose(page, "test-time register")
    until(page, lambda: ratios(page) == [intact, register], "the register's number again")
    assert intervention(page) == TestTimeRegister(planted())
    assert page.elsewhere == []
    assert page.broken == []


def test_both_maps_of_a_pair_have_one_colour_scale(page):
    maps = colours(page, "#norm-pair canvas")
    bright = [sum(green > 145 for _, green, _ in one) for one in maps]  # viridis' upper half
    assert bright[0] > 0
    assert bright[1] == 0


def test_a_broken_upload_gets_a_message_and_the_maps_stay(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no image")
    page.reload()
    page.locator("#words table").wait_for()
    before = ratios(page)
    page.locator("#file input[type=file]").set_input_files(tmp_path / "broken.png")
    page.get_by_text("This file cannot be shown: no known image format").wait_for()
    assert ratios(page) == before


def test_a_clicked_patch_becomes_the_query_and_keys_move_it(page):
    field = page.locator("#attention-pair .field").first
    field.click(position=place(field, 2, 3))
    title = page.locator("#attention-pair figcaption")
    title.get_by_text("Attention of patch 2,3 in layer 11, mean over heads").wait_for()
    assert numbers(page, "norm of the query")[0] > 0
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    title.get_by_text("Attention of patch 4,4 in").wait_for()
    page.locator("#head input").click()
    page.get_by_role("option", name="head 1", exact=True).click()
    title.get_by_text("Attention of patch 4,4 in layer 11, head 1").wait_for()
    page.locator("#layer input[type=number]").fill("6")
    title.get_by_text("Attention of patch 4,4 in layer 6, head 1").wait_for()
    state = json.loads(taken_along(page, "state.json"))
    assert state["view"] == {"layer": 6, "head": 1, "query": "patch 4,4", "neuron": [2, 93]}
    shown = numbers(page, "norm of the query")
    assert shown == pytest.approx(state["numbers"]["norm of the query"], abs=0.006)


def test_ranked_neurons_are_switched_off_and_mapped(page):
    page.locator("#rank").click()
    ticks = page.locator("#ticked label")
    until(page, lambda: ticks.count() > len(planted()), "more neurons than are on")
    (layer, neuron), *others = planted()
    on = page.locator("#ticked input:checked")
    assert on.count() == len(planted())
    tick = ticks.filter(has_text=f"{layer}: {neuron} · ").locator("input")
    tick.uncheck()
    fewer = TestTimeRegister(NeuronSet.of(others))
    until(page, lambda: intervention(page) == fewer, "a register of fewer neurons")
    tick.check()
    until(page, lambda: intervention(page) == TestTimeRegister(planted()), "all neurons again")
    page.locator("#neuron input").click()
    page.get_by_role("option", name=f"{layer}: {neuron}", exact=True).click()
    title = page.locator("#neuron-pair figcaption")
    title.get_by_text(f"Activation of neuron {neuron} in layer {layer}").wait_for()
    keep(page, "explorer-neurons")


def stroke(page) -> None:
    """Along the middle of the picture, from column 5 to column 8."""
    page.get_by_text("Draw where outliers shall go", exact=True).wait_for()
    field = page.locator("#picture")
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    ends = [place(field, 7, column) for column in (5, 8)]
    page.mouse.move(box["x"] + ends[0]["x"], box["y"] + ends[0]["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + ends[1]["x"], box["y"] + ends[1]["y"])
    page.mouse.up()


def test_outliers_go_where_somebody_draws(page):
    choose(page, "move outliers")
    page.get_by_text("Draw on the picture where outliers shall go.").wait_for()
    stroke(page)
    drawn = tuple((7, column) for column in range(5, 9))
    moved = MoveNeurons(planted(), to=drawn)
    until(page, lambda: intervention(page) == moved, "what was drawn")
    assert ratios(page)[1] > 5
    keep(page, "explorer-moved")
    page.locator("#picture").focus()  # the query is at 4, 4
    page.keyboard.press("Space")
    until(page, lambda: intervention(page).to == Positions(((4, 4), *drawn)), "a patch by key")
    stroke(page)  # on patches that are drawn on: erases
    choose(page, "zero the neurons")  # at once after a stroke
    until(page, lambda: intervention(page) == ZeroNeurons(planted()), "the last choice")
    page.wait_for_timeout(1000)
    assert intervention(page) == ZeroNeurons(planted())
    assert page.broken == []


def test_a_phone_in_the_dark_shows_all_of_it(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.reload()
    page.locator("#words table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "explorer-phone-dark")
