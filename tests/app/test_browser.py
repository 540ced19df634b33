"""The explorer in a browser: an image is dropped, a register applied, a broken file refused.

Screenshots go to the folder named by the environment variable TTREG_SCREENSHOTS, if it is set.
"""

import ast
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.app.models import picture
from tests.report.browser import browsing
from ttreg_interp.interventions import Intervention, NeuronSet, TestTimeRegister
from ttreg_interp.testbed import planted_vit

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'ttreg-interp[app]')")
pytest.importorskip("skimage", reason="scikit-image holds the photographs")
WAIT = 60_000


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
    for _ in range(WAIT // 200):
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
        opened = browser.new_page(viewport={"width": 1280, "height": 1400})
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


def ratios(page) -> list[float]:
    """Largest over median norm, intact and intervened."""
    row = page.locator("#words tr", has_text="largest / median").inner_text()
    return [float(number) for number in re.findall(r"\d+\.\d+", row)]


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


def taken_along(page) -> Intervention:
    """The JSON that the page shows."""
    heading = page.get_by_role("button", name="Take it along")
    if not page.locator("#json").is_visible():
        heading.click()
    lines = page.locator("#json .cm-line").all_inner_texts()
    return Intervention.from_json("\n".join(lines))


def keep(page, name: str) -> None:
    if folder := os.environ.get("TTREG_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"explorer-{name}.png", full_page=True)


def test_a_register_shows_cleaner_maps_and_nothing_is_asked_of_the_network(page, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    picture().transpose(0).save(hostile)
    first = ratios(page)
    page.locator("#file input[type=file]").set_input_files(hostile)
    until(page, lambda: ratios(page) != first, "other numbers for another image")
    intact, register = ratios(page)
    assert intact > 10
    assert register < 2
    keep(page, "register")
    choose(page, "nothing")
    until(page, lambda: ratios(page) == [intact, intact], "two equal numbers")
    choose(page, "test-time register")
    until(page, lambda: ratios(page) == [intact, register], "the register's number again")
    assert taken_along(page) == TestTimeRegister(planted())
    assert page.elsewhere == []
    assert page.broken == []


def test_a_broken_upload_gets_a_message_and_the_maps_stay(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no image")
    page.reload()
    page.locator("#words table").wait_for()
    before = ratios(page)
    page.locator("#file input[type=file]").set_input_files(tmp_path / "broken.png")
    page.get_by_text("This file cannot be shown: no known image format").wait_for()
    assert ratios(page) == before


def test_a_neuron_that_is_switched_off_leaves_the_register(page):
    (layer, neuron), *others = planted()
    tick = page.locator("#ticked").get_by_label(f"{layer}: {neuron}", exact=True)
    tick.uncheck()
    fewer = TestTimeRegister(NeuronSet.of(others))
    until(page, lambda: taken_along(page) == fewer, "a register of fewer neurons")
    tick.check()
    until(page, lambda: taken_along(page) == TestTimeRegister(planted()), "all neurons again")


def draw(page) -> None:
    """A stroke along the middle of the picture."""
    box = page.locator("#canvas canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=10)
    page.mouse.up()


def test_outliers_go_where_somebody_draws(page):
    snippet = page.locator("#snippet")

    def drawn_and_moved() -> bool:
        """A browser on a busy machine may drop a stroke that no hand has made; then draw again."""
        draw(page)
        choose(page, "test-time register")
        choose(page, "move outliers")
        page.wait_for_timeout(5000)
        return "MoveNeurons(" in snippet.inner_text()

    until(page, drawn_and_moved, "outliers moved")
    keep(page, "moved")
    drawn = re.search(r"to=(\(.*\))\)", snippet.inner_text())
    rows, columns = zip(*ast.literal_eval(drawn[1]), strict=True)
    assert 4 <= min(rows) <= max(rows) <= 9  # of 14; drawn along the middle
    assert max(columns) > min(columns)
    until(page, lambda: ratios(page)[1] > 5, "outliers where they were drawn")
