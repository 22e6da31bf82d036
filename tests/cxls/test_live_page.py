"""The live page in a browser, on a simulated series in a loop."""

import queue
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.geometry import Geometry
from analyzer.intervals import wilson
from tests.analyzer.builders import SHAPE, frames_of_a_run, image, write_series
from tests.cxls.indexamajig import Indexamajig
from tests.cxls.programs import LOOPBACK, Analysis, Child, Sender, cxls, replaying
from tests.cxls.test_live import Wire
from tests.support import free_port, read_pixels, require

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser

from tests.cxls import ssh
from tests.cxls.browser import Served, Watched, chromium, write_token

FRAMES, VIEWS = 8, ("now", "run", "scan", "performance", "settings")
READOUT = re.compile(
    r"fs (\d+) · ss (\d+) · (masked|[\d\u202f]+ counts?)(?:, most of (\d+) × \d+)? · q (\S+) Å⁻¹ · d (\S+) Å"
)
CAPTION = re.compile(r"series \d+, image (\d+) · (hit|no hit)")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with crystals in more than half of its frames."""
    require("chromium")
    out = tmp_path_factory.mktemp("page") / "run"
    done = cxls("simulate", out, "--frames", FRAMES, "--condition", 5, "--hit-fraction", 0.7, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return out.with_name("run_master.h5")


@pytest.fixture(scope="module")
def pixels(recorded: Path) -> npt.NDArray[Any]:
    return read_pixels(recorded)


@pytest.fixture(scope="module")
def served(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    token, _ = write_token(tmp_path_factory.mktemp("token"))
    with replaying(recorded, loop=True, rate_hz=6.0) as (endpoint, _):
        served = Served(endpoint, free_port(), "--control-token", token, "--target-hits", 100_000)
        yield served
        served.kill()


@pytest.fixture(scope="module")
def browser(recorded: Path) -> Iterator[Browser]:
    del recorded
    with chromium() as browser:
        yield browser


@pytest.fixture
def watched(browser: Browser, served: Served) -> Iterator[Watched]:
    """The page with an image, that has done nothing wrong when the test is over."""
    watched = Watched(browser, served.url)
    watched.wait_for_image()
    yield watched
    assert watched.errors == []
    assert watched.hosts == {served.url.split("/")[2]}
    watched.page.close()


def hold_a_hit(watched: Watched) -> int:
    """Hold the last hit; which image it is."""
    watched.wait("document.querySelectorAll('#strip [data-key]').length > 1")
    watched.page.keyboard.press("h")
    watched.page.keyboard.press("ArrowLeft")
    watched.wait("document.querySelector('#strip [aria-selected=true]') !== null")
    watched.wait("document.getElementById('pause').textContent === 'Go on'")
    watched.page.wait_for_timeout(600)
    found = CAPTION.match(watched.text("caption"))
    assert found, watched.text("caption")
    assert found[2] == "hit"
    return int(found[1])


def asked_region(watched: Watched) -> Any:
    """The part of the detector that the page asked for last."""
    return watched.wishes[-1]["region"]


def place_of(watched: Watched, fs: float, ss: float, shape: tuple[int, ...]) -> tuple[float, float]:
    """Where a pixel of a fitted image lies on the screen."""
    box = watched.page.locator("#detector").bounding_box()
    assert box is not None
    rows, columns = shape
    scale = min(box["width"] / columns, box["height"] / rows)
    left, top = (box["width"] - scale * columns) / 2, (box["height"] - scale * rows) / 2
    return box["x"] + left + scale * (fs + 0.5), box["y"] + top + scale * (ss + 0.5)


def picture(watched: Watched) -> str:
    """The canvas as it is once it is drawn."""
    watched.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return str(watched.page.evaluate("document.getElementById('detector').toDataURL()"))


def test_every_view_fits_its_window_and_shows_what_the_run_has(watched: Watched) -> None:
    for view in VIEWS:
        watched.view(view)
        watched.page.wait_for_timeout(200)
        wide, window, high, room = watched.page.evaluate(
            "() => { const main = document.querySelector('main:not([hidden])'); return "
            "[document.documentElement.scrollWidth, innerWidth, main.scrollHeight, main.clientHeight]; }"
        )
        assert wide <= window, view
        assert high <= room, view
    watched.view("performance")
    assert re.match(r"received \d+ = processed \d+ \+ dropped 0", watched.text("accountIdentity"))
    watched.view("run")
    watched.wait("document.getElementById('powder').complete && document.getElementById('powder').naturalWidth > 100")
    assert re.search(r"\d peaks", watched.text("peakogramNote"))
    watched.view("now")
    assert re.fullmatch(r"\d+\.\d %", watched.text("hitRate"))
    assert re.match(r"header 7\.000 keV", watched.text("energyMore"))
    assert re.search(r"of 100\u202f000", watched.text("collected"))


def test_no_text_of_the_main_view_is_cut_off_at_1280_pixels(watched: Watched) -> None:
    watched.wait("document.getElementById('indexableRate').textContent.endsWith('%')")
    cut = watched.page.evaluate(
        "async () => { const { sayQuantity } = await import(new URL('static/dom.js', location));"
        "sayQuantity('energy', ['7.095 ± 0.056', 'keV']); sayQuantity('cameraLength', ['251.94 ± 0.72', 'mm']);"
        "sayQuantity('ratio', ['21.415 ± 0.033', 'mm/keV']);"
        "return [...document.querySelectorAll('.tiles *, #collected *, .toolbar button, #caption')]"
        ".filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth).map(each => each.textContent); }"
    )
    assert cut == []
    reason = watched.page.evaluate(
        "async () => { const { show } = await import(new URL('static/numbers.js', location));"
        "const status = await (await fetch('status')).json();"
        "const estimate = { estimate_reason: 'camera length over photon energy known to more than 25 % only' };"
        "show({ ...status, estimate });"
        "const shift = document.getElementById('shift'), now = document.getElementById('now');"
        "return [shift.textContent, shift.scrollWidth - shift.clientWidth, now.scrollHeight - now.clientHeight]; }"
    )
    assert reason == ["camera length over photon energy known to more than 25 % only", 0, 0]


def test_an_empty_tile_says_why_and_spots_that_contradict_the_water_are_told(watched: Watched) -> None:
    told = watched.page.evaluate(
        "async () => { const { show } = await import(new URL('static/numbers.js', location));"
        "const status = await (await fetch('status')).json(), said = [];"
        "const reason = 'photon energy known to 1210 eV only; camera length known to 31 mm only';"
        "const bragg = { disagreement: 'the Bragg spots of 40 hits say 22.115 mm/keV at 6.482 keV, the water "
        "21.415 mm/keV at 7.003 keV, 55.1 standard deviations apart: the water\\'s is kept; is the cell right?' };"
        "for (const estimate of [{ estimate_reason: reason }, { photon_energy_eV: 7e3, photon_energy_sigma_eV: 20,"
        "estimate_reason: 'camera length known to 31 mm only', bragg }, { estimate_reason: 'no beam' }]) {"
        "show({ ...status, estimate });"
        "const now = document.getElementById('now');"
        "said.push([...['energyWhy', 'lengthWhy', 'basis'].map(id => document.getElementById(id).textContent.trim()),"
        "now.scrollHeight - now.clientHeight]); } return said; }"
    )
    both, one, none = told
    assert both[:2] == ["photon energy known to 1210 eV only", "camera length known to 31 mm only"]
    assert one[:2] == ["from the data alone", "camera length known to 31 mm only"]
    assert one[2].endswith("is the cell right?")
    assert none[:2] == ["no beam", "no beam"]
    assert [each[3] for each in told] == [0, 0, 0], "all of it has room"


def test_keys_change_what_is_drawn_and_change_it_back(watched: Watched) -> None:
    hold_a_hit(watched)
    before = picture(watched)
    for key, times in {"p": 2, "r": 2, "g": 2, "m": 2, "c": 3}.items():
        watched.page.keyboard.press(key)
        assert picture(watched) != before, key
        for _ in range(times - 1):
            watched.page.keyboard.press(key)
        assert picture(watched) == before, key


def test_zooming_asks_for_the_region_and_reads_out_the_pixels_of_the_file(
    watched: Watched, pixels: npt.NDArray[Any]
) -> None:
    image = pixels[hold_a_hit(watched)]
    shape = image.shape
    assert asked_region(watched) is None
    counted = np.where(image < np.iinfo(image.dtype).max, image, 0)
    ss, fs = np.unravel_index(int(counted.argmax()), shape)
    x, y = place_of(watched, float(fs), float(ss), shape)
    watched.page.mouse.move(x, y)
    for _ in range(4):
        watched.page.mouse.wheel(0, -200)
    watched.wait("document.getElementById('caption').textContent.endsWith('every pixel')")
    region = asked_region(watched)
    assert region[0] <= fs < region[0] + region[2] < shape[1]
    assert region[1] <= ss < region[1] + region[3] < shape[0]
    geometry = Geometry(shape, 1033.5, 1080.5, 75e-6, camera_length_m=0.25, photon_energy_eV=7000.0)
    seen = set()
    for dx, dy in [(0, 0), (9, 0), (0, 9), (-9, 9), (40, 3), (-3, -40), (60, -60)]:
        watched.page.mouse.move(x + dx, y + dy)
        watched.page.wait_for_timeout(40)
        found = READOUT.fullmatch(watched.text("readout"))
        assert found, watched.text("readout")
        at = int(found[2]), int(found[1])
        assert found[4] is None, "no bins any more"
        assert found[3] == f"{image[at]:_} count{'s' * int(image[at] != 1)}".replace("_", "\u202f")
        radius = float(np.hypot(at[1] - 1033.5, at[0] - 1080.5))
        q = geometry.q_at(radius)
        assert q is not None
        assert float(found[5]) == pytest.approx(float(q), abs=6e-4)
        assert float(found[6]) == pytest.approx(geometry.resolution_at(radius), rel=2e-3, abs=6e-3)
        seen.add(at)
    assert len(seen) >= 5
    watched.page.keyboard.press("0")
    watched.wait("/largest of/.test(document.getElementById('caption').textContent)")
    assert watched.wishes[-1]["region"] is None


def test_the_keyboard_zooms_and_pans_and_reads_out_the_middle(watched: Watched) -> None:
    hold_a_hit(watched)
    for key in ("+", "+", "+", "Shift+ArrowRight", "Shift+ArrowDown"):
        watched.page.keyboard.press(key)
    watched.page.wait_for_timeout(400)
    region = watched.wishes[-1]["region"]
    assert region[0] + region[2] / 2 > 2068 / 2
    assert region[1] + region[3] / 2 > 2162 / 2
    assert watched.text("readout").startswith("fs ")


def test_a_hit_of_the_ring_opens_and_the_next_one_follows(watched: Watched) -> None:
    watched.wait("document.querySelectorAll('#strip [data-key]').length > 3")
    bar = watched.page.locator("#strip [data-key]").first
    key, title = bar.get_attribute("data-key"), bar.get_attribute("title")
    assert title is not None
    bar.click()
    watched.wait("text => document.getElementById('caption').textContent.startsWith(text)", title.split(":")[0])
    assert watched.wishes[-1]["show"] == "held"
    assert watched.wishes[-1]["key"] == key
    watched.page.keyboard.press("ArrowRight")
    watched.wait("text => !document.getElementById('caption').textContent.startsWith(text)", title.split(":")[0])
    assert watched.wishes[-1]["key"] != key
    watched.page.keyboard.press(" ")
    watched.wait("document.getElementById('pause').textContent === 'Hold'")
    watched.page.wait_for_timeout(200)
    assert watched.wishes[-1]["show"] == "latest"


def test_a_page_that_nobody_sees_asks_for_no_images(watched: Watched) -> None:
    watched.view("scan")
    watched.page.wait_for_timeout(300)
    assert watched.wishes[-1] == {"show": "none"}
    watched.view("now")
    watched.page.wait_for_timeout(300)
    assert watched.wishes[-1]["show"] == "latest"
    watched.page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    watched.page.wait_for_timeout(300)
    assert watched.wishes[-1] == {"show": "none"}


def test_the_question_mark_shows_the_keys_and_typing_is_no_key(watched: Watched) -> None:
    watched.page.keyboard.press("?")
    assert watched.page.locator("#help").is_visible()
    assert "latest hit" in watched.text("help")
    watched.page.keyboard.press("Escape")
    watched.page.keyboard.press("5")
    watched.page.locator("#runForm [name=sample]").fill("")
    watched.page.locator("#token").press_sequentially("1h?")
    assert watched.page.locator("#settings").is_visible()
    assert not watched.page.locator("#help").is_visible()


def test_a_threshold_set_on_the_page_is_among_the_changes(watched: Watched) -> None:
    watched.view("settings")
    field = watched.page.locator("#thresholdForm [name=value]")
    watched.page.locator("#token").fill("not the token")
    field.fill("0.625")
    watched.page.locator("#thresholdForm button").first.click()
    watched.wait("/token is missing or wrong/.test(document.getElementById('answer').textContent)")
    watched.errors.clear()
    watched.page.locator("#token").fill("a-token-for-tests")
    field.fill("0.625")
    watched.page.locator("#thresholdForm button").first.click()
    watched.wait("document.getElementById('answer').textContent === 'threshold: done'")
    watched.wait("/threshold .* → 0.625/.test(document.getElementById('changes').textContent)")
    assert re.match(r"\d\d:\d\d:\d\d threshold", watched.text("changes"))


def test_a_new_run_is_confirmed_and_named(watched: Watched) -> None:
    watched.view("settings")
    watched.page.locator("#token").fill("a-token-for-tests")
    watched.page.locator("#runForm [name=number]").fill("12")
    watched.page.locator("#runForm [name=sample]").fill("lysozyme <b>& salt</b>")
    watched.page.locator("#newRun").click()
    watched.page.locator("#confirm button[value=no]").click()
    assert watched.text("answer") == ""
    watched.page.locator("#newRun").click()
    watched.page.locator("#confirmYes").click()
    watched.wait("document.getElementById('runName').textContent === 'Run 12 · lysozyme <b>& salt</b>'")


def begin_a_run(watched: Watched) -> None:
    watched.page.locator("#newRun").click()
    watched.page.locator("#confirmYes").click()
    watched.wait("document.getElementById('answer').textContent === 'run: done'")


def test_notes_of_a_run_stay_with_it_and_a_number_that_is_cleared_is_none(watched: Watched) -> None:
    watched.view("settings")
    number, sample, notes = (watched.page.locator(f"#runForm [name={name}]") for name in ("number", "sample", "notes"))
    watched.page.locator("#token").fill("a-token-for-tests")
    number.fill("40")
    sample.fill("thaumatin")
    notes.fill("nozzle clogged\nat 10:12")
    watched.page.locator("#runForm button").first.click()
    watched.wait("document.getElementById('identity').title === 'nozzle clogged\\nat 10:12'")
    watched.page.wait_for_timeout(600)
    begin_a_run(watched)
    watched.wait("document.getElementById('runName').textContent === 'Run 41 · thaumatin'")
    watched.wait("document.getElementById('identity').title === ''")
    assert notes.input_value() == ""
    notes.fill("a new nozzle")
    number.fill("")
    begin_a_run(watched)
    watched.wait("document.getElementById('identity').title === 'a new nozzle'")
    assert re.fullmatch(r"Run since \d\d:\d\d · thaumatin", watched.text("runName"))
    number.fill("7")
    watched.page.locator("#runForm button").first.click()
    watched.wait("document.getElementById('runName').textContent === 'Run 7 · thaumatin'")
    watched.page.wait_for_timeout(600)
    number.fill("")
    watched.page.locator("#runForm button").first.click()
    watched.wait("document.getElementById('runName').textContent.startsWith('Run since')")


def test_a_target_of_hits_is_set_where_no_indexer_is_followed(watched: Watched) -> None:
    watched.view("settings")
    hits, indexed = (watched.page.locator(f"#targetForm [name={name}]") for name in ("hits", "indexed"))
    assert indexed.is_disabled()
    assert "--index-stream" in (indexed.get_attribute("title") or "")
    watched.page.locator("#token").fill("a-token-for-tests")
    for target in (250_000, 100_000):
        hits.fill(str(target))
        watched.page.locator("#targetForm button").click()
        watched.wait("document.getElementById('answer').textContent === 'target: done'")
        shown = f"{target:_}".replace("_", "\u202f")
        watched.wait("text => document.getElementById('collected').textContent.includes(text)", f"of {shown}")
    watched.view("now")
    watched.wait(r"/\d \S+ left/.test(document.querySelector('#collected .left').textContent)")


@pytest.fixture
def settings(browser: Browser, bundle_folder: Path, tmp_path: Path) -> Iterator[Watched]:
    """The settings of an analysis of two channels and a small detector, with the token."""
    token, text = write_token(tmp_path)
    wire = Wire("v2")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", control_token=token).start()
        assert analysis.session.web is not None
        sender.send(*wire.start(1, 5, channels=("threshold_1", "threshold_2")))
        for n in range(5):
            sender.send(*wire.image(image(n)))
        watched = Watched(browser, f"http://{analysis.session.web.address}/#settings")
        watched.wait("document.getElementById('seriesName').textContent.startsWith('series 1')")
        watched.page.locator("#token").fill(text)
        yield watched
        # Changes that are refused, and products, which are none after a change until the next frame.
        assert [error for error in watched.errors if not re.search("status of (404|422)", error)] == []
        watched.page.close()
        analysis.stop()


def wait_for_change(settings: Watched, action: str, text: str) -> None:
    """Until the page says that it is done, and what in the list of changes."""
    settings.wait("text => document.getElementById('answer').textContent === text", f"{action}: done")
    settings.wait("text => document.querySelector('#changes li').textContent.endsWith(text)", text)
    assert re.match(r"\d\d:\d\d:\d\d ", settings.page.locator("#changes li").first.inner_text())


def test_peaks_are_set_by_the_fields_that_were_changed(settings: Watched) -> None:
    least, button = settings.page.locator("#peaksForm [name=min_peaks]"), settings.page.locator("#peaksForm button")
    before = least.input_value()
    least.fill("7")
    button.click()
    wait_for_change(settings, "peaks", f" peaks min_peaks {before} → 7")
    settings.page.locator("#peaksForm [name=hit_rule]").select_option("either")
    settings.page.locator("#peaksForm [name=min_peaks]").fill("9")
    button.click()
    wait_for_change(settings, "peaks", " peaks min_peaks 7 → 9, hit_rule network → either")
    least.fill("-1")
    button.click()
    settings.wait("/^peaks: .*min_peaks/.test(document.getElementById('answer').textContent)")
    assert settings.page.locator("#answer").get_attribute("class") == "bad"


def test_a_mask_file_is_used_and_none_again_and_no_hot_pixels_are_refused(settings: Watched, tmp_path: Path) -> None:
    bad = np.zeros(SHAPE, "u1")
    bad[:5] = 1
    np.save(tmp_path / "top.npy", bad)
    form, path = settings.page.locator("#maskForm"), settings.page.locator("#maskForm [name=path]")
    path.fill(str(tmp_path / "top.npy"))
    form.get_by_role("button", name="Use file").click()
    wait_for_change(settings, "mask", " mask none → top.npy")
    settings.wait("document.getElementById('maskNow').textContent === 'top.npy'")
    path.fill(str(tmp_path / "nowhere.npy"))
    form.get_by_role("button", name="Use file").click()
    settings.wait("/^mask: .*nowhere.npy.*no such file/.test(document.getElementById('answer').textContent)")
    settings.page.locator("#hotPixels").click()
    settings.wait("/^mask: .*the running map has no pixel yet/.test(document.getElementById('answer').textContent)")
    settings.page.locator("#noMask").click()
    wait_for_change(settings, "mask", " mask top.npy → none")
    settings.wait("document.getElementById('maskNow').textContent === \"the header's alone\"")


def test_a_channel_is_chosen_of_those_of_the_series(settings: Watched) -> None:
    settings.page.locator("#channelForm [name=name]").select_option("threshold_2")
    settings.page.locator("#channelForm button").click()
    wait_for_change(settings, "channel", " channel first threshold → threshold_2")


def test_a_reset_is_confirmed(settings: Watched) -> None:
    settings.page.locator("#reset").click()
    settings.page.locator("#confirm button[value=no]").click()
    assert (settings.text("answer"), settings.text("changes")) == ("", "none yet")
    settings.page.locator("#reset").click()
    settings.page.locator("#confirmYes").click()
    wait_for_change(settings, "reset", " running products begun anew")


def test_the_run_view_has_the_cells_of_an_indexer(browser: Browser, bundle_folder: Path, tmp_path: Path) -> None:
    stream, bright = tmp_path / "out.stream", write_series(tmp_path / "bright", frames_of_a_run(24))
    with replaying(bright) as (endpoint, _):
        analysis = Analysis(
            [endpoint], bundle_folder, tmp_path / "r.jsonl", hit_rule="peaks", min_peaks=5,
            index_listen=LOOPBACK, index_stream=stream,
        )  # fmt: skip
        (server,) = analysis.session.front.hit_outputs
        assert analysis.session.web is not None
        with Indexamajig(server.router.address, stream):  # type: ignore[attr-defined]
            analysis.start()
            watched = Watched(browser, f"http://{analysis.session.web.address}/#run")
            watched.wait("document.getElementById('noCells').hidden")
            watched.wait("document.getElementById('cellsNote').textContent.endsWith('the latest 12')")
            for plot in ("peakCounts", "resolutions", *(f"cell{n}" for n in range(6))):
                wait_for_curves(watched, plot)
            assert watched.page.locator("#cells h3").all_inner_texts() == [
                "a 79.00 Å", "b 79.00 Å", "c 38.00 Å", "α 90.00 °", "β 90.00 °", "γ 90.00 °",
            ]  # fmt: skip
            watched.wait("!document.getElementById('powder').hidden")
            assert watched.text("indexedNote") == "· indexed: 100.0 % of the last 100 hits, 100.0 % of all"
            # As after a reset, until the next one is indexed.
            gone = watched.page.evaluate(
                "async () => { const products = await import(new URL('static/products.js', location));"
                "products.take({ profile: null, cells: null });"
                "return [...['cells', 'noCells'].map(id => document.getElementById(id).hidden),"
                "document.getElementById('cellsNote').textContent]; }"
            )
            assert gone == [True, True, "none yet"]
            assert watched.errors == []
            watched.page.close()
            analysis.stop()


def test_the_page_computes_as_the_analysis_does(watched: Watched) -> None:
    for k, n in [(0, 10), (3, 10), (10, 10), (211, 9000)]:
        found = watched.page.evaluate(
            "async ([k, n]) => (await import(new URL('static/statistics.js', location)).then(m => m.wilson(k, n)))",
            [k, n],
        )
        assert found == pytest.approx(wilson(k, n))


def test_the_age_of_what_is_seen_needs_no_clocks_that_agree(watched: Watched) -> None:
    ages = watched.page.evaluate(
        "async messages => { const { Age } = await import(new URL('static/age.js', location)); const age = new Age();"
        "const each = ([said, heard]) => { age.take(said, heard); return age.seconds(heard); };"
        "return [age.seconds(1), ...messages.map(each)]; }",
        # Said and heard: half a minute apart, late by 4 s, in time, the clock set back an hour, late by 5 s.
        [[1000, 30], [1001, 31.2], [1001.5, 35.5], [1006, 36], [-2594, 36.5], [-2593, 42.5]],
    )
    assert ages == pytest.approx([0, 0, 0.2, 4, 0, 0, 5], abs=2e-3)


def test_curves_go_up_to_the_time_of_the_analysis_whatever_the_laptop_thinks(watched: Watched) -> None:
    ranges = watched.page.evaluate(
        "async () => { const { toNow } = await import(new URL('static/plot.js', location));"
        "const present = await import(new URL('static/present.js', location)); const ours = Date.now;"
        "const found = [0, 3600e3, -3600e3].map(off => { Date.now = () => ours() + off; present.take(5000);"
        "return [toNow(null, 4000, 4990), toNow(null, null, null), toNow(null, 4000, 5600),"
        "toNow({ data: [[4995]] }, 4995, 864e5)]; });"
        "Date.now = ours; return found; }"
    )
    for stopped, empty, ahead, single in ranges:
        assert single == pytest.approx([4995, 5000], abs=0.1)
        assert stopped == pytest.approx([4000, 5000], abs=0.1)
        assert empty == pytest.approx([4940, 5000], abs=0.1)
        assert ahead == [4000, 5600]


def test_a_clock_set_back_holds_no_wish_back(watched: Watched) -> None:
    watched.page.evaluate("const ours = Date.now; Date.now = () => ours() - 3600e3")
    before = len(watched.wishes)
    for key in ("+", "+", "+"):
        watched.page.keyboard.press(key)
    watched.page.wait_for_timeout(400)
    assert len(watched.wishes) > before
    assert asked_region(watched) is not None


def test_the_last_minute_has_no_indexable_frame_when_the_stream_stopped_before(watched: Watched) -> None:
    said = watched.page.evaluate(
        "async times => { const { lastMinute } = await import(new URL('static/curves.js', location));"
        "const bins = { t: [1000, 1001, 1050], beam: [10, 10, 20], indexable: [9, 0, 5] };"
        "return times.map(now => { lastMinute(bins, now);"
        "return ['indexableRate', 'indexableRateMore'].map(id => document.getElementById(id).textContent); }); }",
        [1050.5, 1060.5, 1110.5],
    )
    assert [rate for rate, _ in said] == ["35.0 %", "16.7 %", "–"]
    assert said[2][1] == "no frame with beam"


def test_a_curve_begins_anew_when_the_clock_is_set_back(watched: Watched) -> None:
    kept = watched.page.evaluate(
        "async times => { const { keep } = await import(new URL('static/curves.js', location)); const curve = [[], []];"
        "return times.map(time => { keep(curve, time, 2 * time); return curve.map(values => values.slice()); }); }",
        [5000, 5001, 5901, 3000, 3000, 3001],
    )
    assert [times for times, _ in kept] == [
        [5000], [5000, 5001], [5001, 5901], [3000], [3000, 3000], [3000, 3000, 3001],
    ]  # fmt: skip
    assert all(values == [2 * time for time in times] for times, values in kept)


COLOURED = """id => {
    const canvas = document.querySelector(`#${id} canvas`);
    if (!canvas) return 0;
    const {width, height} = canvas;
    const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
    let found = 0;
    for (let n = 0; n < data.length; n += 4) {
        const [r, g, b, a] = data.slice(n, n + 4);
        found += a > 128 && Math.max(r, g, b) - Math.min(r, g, b) > 60;
    }
    return found;
}"""
"""How many pixels of a plot have a curve's colour, not an axis' grey."""


def wait_for_curves(watched: Watched, plot: str) -> None:
    """Until a plot shows more than its axes."""
    watched.wait(f"id => ({COLOURED})(id) > 100", plot)


def test_a_detector_of_another_shape_is_asked_for_whole(watched: Watched) -> None:
    for key in ("+", "+", "+"):
        watched.page.keyboard.press(key)
    watched.page.wait_for_timeout(400)
    assert asked_region(watched) is not None
    moved = watched.page.evaluate(
        "async () => { const { Transform } = await import(new URL('static/transform.js', location));"
        "const t = new Transform(); const first = t.place(500, 400, [20, 30]); t.zoom(4);"
        "return [first, t.place(400, 500, [20, 30]), t.place(400, 500, [60, 50]), t.place(400, 500, [60, 50])]; }"
    )
    assert moved == [False, False, True, False]
    watched.page.evaluate(
        "async () => { const detector = await import(new URL('static/detector.js', location));"
        "const part = { shape: [60, 50], region: [5, 5, 10, 10], rows: 10, columns: 10, bin: 1 };"
        "const head = { ...detector.latest(), key: '0:0', ...part };"
        # Again and again, as a frame of the series may come before it is drawn.
        "for (let n = 0; n < 10; n++) { detector.take({ head, pixels: new Uint16Array(100) });"
        "await new Promise(done => setTimeout(done, 50)); } }"
    )
    watched.page.wait_for_timeout(200)
    assert asked_region(watched) is None


def test_the_run_view_has_curves_and_lets_go_of_them_when_there_are_none(watched: Watched) -> None:
    watched.view("run")
    for plot in ("profile", "peakCounts", "resolutions"):
        wait_for_curves(watched, plot)
    watched.wait("!document.getElementById('powder').hidden")
    assert re.fullmatch(r"photons a pixel a frame, \d+ frames", watched.text("profileNote"))
    # What a restarted analysis says before its first frame.
    left = watched.page.evaluate(
        "async () => { const products = await import(new URL('static/products.js', location));"
        "products.take({ profile: null, cells: null }); products.useStatus({ account: { processed: { hit: 0 } } });"
        f"return [['profile', 'peakCounts', 'resolutions'].map({COLOURED}), document.getElementById('powder').hidden,"
        "['profileNote', 'powderNote', 'peakogramNote'].map(id => document.getElementById(id).textContent)]; }"
    )
    assert left == [[0, 0, 0], True, ["none yet", "no frame yet", "no frame yet"]]
    watched.wait("!document.getElementById('powder').hidden")


def test_the_axis_of_the_radial_profile_has_the_unit_that_came(watched: Watched) -> None:
    watched.view("run")
    wait_for_curves(watched, "profile")
    written = watched.page.evaluate(
        "async () => { const products = await import(new URL('static/products.js', location)), written = [];"
        "const draws = CanvasRenderingContext2D.prototype, write = draws.fillText;"
        "draws.fillText = function (text, ...at) {"
        "if (this.canvas.closest('#profile')) written.push(text); write.call(this, text, ...at); };"
        "for (const unit of ['px', '1/angstrom']) {"
        "products.take({ profile: { unit, x: [1, 2, 3], measured: [1, 2, 1], frames: 5, label: '' }, cells: null });"
        "await new Promise(done => requestAnimationFrame(done)); }"
        "draws.fillText = write; return written.filter(text => /px|Å⁻¹/.test(text)); }"
    )
    assert list(dict.fromkeys(written)) == ["radius (px)", "q (Å⁻¹)"]


def test_the_banner_says_when_the_analysis_is_silent_or_gone_and_leaves_when_it_is_back(
    browser: Browser, served: Served
) -> None:
    watched = Watched(browser, served.url)
    watched.wait_for_image()
    assert watched.text("banner") == ""
    served.program.process.send_signal(signal.SIGSTOP)
    try:
        watched.wait("/no word from the analysis for [34] s/.test(document.getElementById('banner').textContent)")
    finally:
        served.program.process.send_signal(signal.SIGCONT)
    watched.wait("document.getElementById('state').textContent === 'live'")
    watched.page.locator("#strip [data-key]").first.click()
    watched.wait("document.getElementById('pause').textContent === 'Go on'")
    served.kill()
    watched.wait("/does not answer/.test(document.getElementById('banner').textContent)")
    watched.wait("document.getElementById('state').textContent.startsWith('no answer for')")
    assert watched.page.locator("#banner").get_attribute("role") == "alert"
    # Keys of the hits begin anew with the analysis: what was held is another's now.
    served.start()
    watched.wait("document.getElementById('banner').textContent === ''")
    watched.wait("document.getElementById('pause').textContent === 'Hold'")
    watched.wait("document.getElementById('state').textContent === 'live'")
    watched.wait_for_image()
    assert watched.wishes[-1]["show"] == "latest"
    watched.page.close()


def test_a_run_without_a_frame_is_shown_and_then_its_tags(
    browser: Browser, bundle_folder: Path, tmp_path: Path
) -> None:
    with Sender() as sender:
        results = tmp_path / "r.jsonl"
        analysis = Analysis([sender.endpoint], bundle_folder, results, split_tag="laser", map_tags="x,y").start()
        assert analysis.session.web is not None
        watched = Watched(browser, f"http://{analysis.session.web.address}/")
        watched.wait("document.getElementById('seriesName').textContent.startsWith('no series yet')")
        for view in VIEWS:
            watched.view(view)
            watched.page.wait_for_timeout(100)
        assert watched.page.locator("#controlOff").is_visible()
        wire = Wire("v2")
        sender.send(*wire.start(1, 40))
        for n in range(40):
            sender.send(*wire.image(image(n, user_data={"laser": n % 2, "x": n % 5, "y": n // 5})))
        watched.view("scan")
        watched.wait("document.getElementById('splitNote').textContent === 'with 95 % intervals'")
        watched.wait("document.getElementById('mapNote').textContent.startsWith('x, y in steps of 1, 1')")
        box = watched.page.locator("#map").bounding_box()
        assert box is not None
        # The map grows while frames are analysed.
        for nudge in range(100):
            watched.page.mouse.move(box["x"] + box["width"] / 2 + nudge % 2, box["y"] + box["height"] / 2)
            found = re.match(r"x 2, y [34]: \d hits of 1 frames with beam", watched.text("mapReadout"))
            if found:
                break
            watched.page.wait_for_timeout(100)
        assert found, watched.text("mapReadout")
        watched.view("now")
        watched.wait_for_image()
        assert watched.errors == []
        watched.page.close()
        analysis.stop()


def test_files_that_are_over_are_said_to_be(browser: Browser, recorded: Path) -> None:
    with Child("view", recorded, "--listen", "127.0.0.1:0") as child:
        address = child.listening("http")
        watched = Watched(browser, f"http://{address}/")
        watched.wait("document.getElementById('state').textContent === 'over'")
        assert watched.page.locator("#state").get_attribute("class") == "good"
        assert watched.text("banner") == ""
        said = cxls("watch", f"http://{address}", "--once").stdout
        assert said.startswith("state     [=] over")
        watched.page.close()
        assert child.end(signal.SIGINT) == 130


class Relay(socketserver.BaseRequestHandler):
    """Hands bytes on to a server and back."""

    target = ("", 0)

    def handle(self) -> None:
        with socket.create_connection(self.target) as server:
            back = threading.Thread(target=self._back, args=(server,), daemon=True)
            back.start()
            with suppress(OSError):
                while data := self.request.recv(65536):
                    server.sendall(self._ahead(data))
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _ahead(self, data: bytes) -> bytes:
        return data

    def _back(self, server: Any) -> None:
        # A browser that closes its page cuts the connection short.
        with suppress(OSError):
            while data := server.recv(65536):
                self._hand_back(data)

    def _hand_back(self, data: bytes) -> None:
        self.request.sendall(data)


class Prefixed(Relay):
    """Hands what asks for ``/beam/…`` on to a server that knows ``/…``."""

    def _ahead(self, data: bytes) -> bytes:
        return data.replace(b"GET /beam/", b"GET /", 1)


class Tunnel(Relay):
    """Answers come ``way.late_s`` later, in their order; of connections in ``way.lost`` nothing comes any more."""

    way: "Way"

    def setup(self) -> None:
        self._sending: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self.way.open.add(self)
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def finish(self) -> None:
        self._sending.put((0.0, b""))
        self._sender.join()

    def _hand_back(self, data: bytes) -> None:
        self._sending.put((time.monotonic() + self.way.late_s, data))

    def _send(self) -> None:
        with suppress(OSError):
            while (then := self._sending.get())[1]:
                due_s, data = then
                time.sleep(max(0.0, due_s - time.monotonic()))
                if self not in self.way.lost:
                    self.request.sendall(data)


class Way:
    """How a tunnel is: how late, which connections it has and which it lost."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self.open: set[Tunnel] = set()
        self.lost: set[Tunnel] = set()


@contextmanager
def relayed(kind: type[Relay], served: Served, **attributes: object) -> Iterator[str]:
    """The address of a relay of the page's."""
    host, port = served.url.split("/")[2].split(":")
    handler = type("Handler", (kind,), {"target": (host, int(port)), **attributes})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}/"
        proxy.shutdown()


def test_the_page_works_behind_a_proxy_with_a_prefix(browser: Browser, served: Served) -> None:
    with relayed(Prefixed, served) as url:
        watched = Watched(browser, f"{url}beam/")
        watched.wait_for_image()
        watched.view("run")
        watched.wait("document.getElementById('powder').naturalWidth > 100")
        assert watched.errors == []
        watched.page.close()


def test_a_slow_tunnel_is_told_by_the_age_of_what_comes(browser: Browser, served: Served) -> None:
    way = Way()
    with relayed(Tunnel, served, way=way) as url:
        watched = Watched(browser, url)
        watched.wait_for_image()
        watched.page.wait_for_timeout(1000)
        assert watched.text("banner") == ""
        way.late_s = 4.0
        watched.wait("/what you see is 4 s old/.test(document.getElementById('banner').textContent)")
        assert watched.text("state") == "4 s behind"
        way.late_s = 0.0
        watched.wait("document.getElementById('banner').textContent === ''")
        assert watched.text("state") == "live"
        assert watched.errors == []
        watched.page.close()


def test_a_connection_that_went_silent_is_given_up_for_another(browser: Browser, served: Served) -> None:
    way = Way()
    with relayed(Tunnel, served, way=way) as url:
        watched = Watched(browser, url)
        watched.wait_for_image()
        way.lost |= way.open
        watched.wait("/no word from the analysis for \\d s/.test(document.getElementById('banner').textContent)")
        watched.wait("document.getElementById('banner').textContent === ''")
        watched.wait("document.getElementById('state').textContent === 'live'")
        watched.page.close()


def test_over_ssh_the_page_is_live_and_comes_back_with_the_tunnel(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    there, here = int(served.url.split(":")[2].strip("/")), free_port()
    with ssh.server(tmp_path) as server:
        with ssh.forwarded(tmp_path, server, there, here):
            watched = Watched(browser, f"http://127.0.0.1:{here}/")
            watched.wait_for_image()
            watched.wait("document.getElementById('state').textContent === 'live'")
            assert (watched.text("banner"), watched.errors) == ("", [])
            # A click that asks for data, not only what is pushed.
            watched.view("run")
            watched.wait("document.getElementById('powder').naturalWidth > 100")
        watched.wait("/does not answer/.test(document.getElementById('banner').textContent)")
        with ssh.forwarded(tmp_path, server, there, here):
            watched.wait("document.getElementById('banner').textContent === ''")
            watched.wait("document.getElementById('state').textContent === 'live'")
            watched.page.close()
