"""Our pages in a real browser: they load nothing, can be read and used by all, and their meshes turn.

Needs Chromium (Debian and Ubuntu: `apt install chromium`). Where LIB_BROWSER=required, as in CI, its absence fails.
"""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import trimesh
from chromium import Chromium, where
from PIL import Image
from test_export import exported
from test_gallery import NAME, sections, truth, write
from test_page import record

from lib import gallery, page, parcel, runs

REQUIRED = os.environ.get("LIB_BROWSER") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not where() and not REQUIRED, reason="no Chromium here: apt install chromium"),
]
CANVAS = ".card canvas"
PIXELS = f"[...document.querySelectorAll('{CANVAS}')].map((canvas) => canvas.toDataURL())"


@pytest.fixture(scope="module")
def browser():
    assert where(), "LIB_BROWSER=required, but there is no Chromium: apt install chromium"
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Two runs with everything a page can have, their table, and a shared log, in a folder with an odd name."""
    outputs = tmp_path_factory.mktemp("a b#c%41") / "outputs"
    run = outputs / "demo"
    for name in ("box_0badcafe_view_002", NAME):
        write(run / "07_generate" / f"{name}.glb", trimesh.creation.torus(1, 0.3))
        Image.new("RGBA", (160, 160), "red").save(run / "07_generate" / f"{name}.png")
    write(truth(run, "box_0badcafe"), trimesh.creation.box())
    (run / "11_train_vae").mkdir()
    (run / "11_train_vae" / "curve.csv").write_text("step,loss\n1,300\n2,20\n3,1\n")
    (run / "11_train_vae" / "validation.csv").write_text("step,iou\n1,0.1\n3,0.5\n")
    (run / "11_train_vae" / "scores.csv").write_text("item,iou,f_05\na,0.5,0.75\n")
    (run / "01_one.csv").write_text(
        f"item,status,reason,seconds,command\na,quarantined,{'because ' * 9},1,python -m x\n"
    )
    statuses = ("completed", "failed", "killed", "timed out", "interrupted", "not run", "running")
    about = record(status="completed", sections=sections(run) | record()["sections"])
    plain = about["sections"]["01_one"]
    about["sections"] = {name: plain | section for name, section in about["sections"].items()} | {"11_train_vae": plain}
    about["sections"] |= {f"2{k}_x": plain | {"status": status} for k, status in enumerate(statuses)}
    for section in about["sections"].values():
        section.setdefault("parameters", {"steps": 3})
    (run / "run.json").write_text(json.dumps(about))
    exported(run, "# One", "**Is it so?** Look:", "**The verdict:** so?")
    gallery.build(run, about["sections"])
    shutil.copytree(run, outputs / "other")
    changed = about | {"started": "2026-02-02T00:00:00+00:00"}
    changed["sections"] = about["sections"] | {"01_one": plain | {"parameters": {"steps": 900}}}
    (outputs / "other" / "run.json").write_text(json.dumps(changed))
    parcel.pack(run, outputs / "shared")
    for _ in range(2):  # each links to the other if it is there
        page.write(run, about)
        page.write(outputs / "other", changed)
        runs.write(outputs)
    return outputs


PAGES = ["index.html", "demo/index.html", "demo/01_one.html", "shared/index.html"]


def load(browser, outputs, name, **options):
    browser.open((outputs / name).as_uri(), **options)


def turned(browser, count=3):
    """All meshes of the page, once they are there."""
    browser.run("document.querySelector('#gallery').scrollIntoView()")
    browser.until(f"document.querySelectorAll('{CANVAS}').length == {count}")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return browser.run(PIXELS)


def only_files(browser, outputs):
    assert browser.complaints() == []
    assert all(url.startswith(outputs.as_uri()) for url in browser.requests()), browser.requests()


# -- open and click through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_but_files_and_complains_of_nothing(browser, outputs, name):
    load(browser, outputs, name)
    if browser.run("!!document.querySelector('#gallery')"):
        turned(browser)
    only_files(browser, outputs)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(browser, outputs, name):
    load(browser, outputs, name)
    links = browser.run("[...document.links].map((link) => [link.href, link.hash.slice(1)])")
    assert links
    for address, mark in links:
        if mark:
            assert browser.run(f"!!document.getElementById(decodeURIComponent({json.dumps(mark)}))"), mark
        else:
            assert Path(unquote(address.removeprefix("file://"))).is_file(), address


def test_from_the_table_of_runs_to_a_verdict_by_clicks(browser, outputs):
    load(browser, outputs, "index.html")
    click(browser, "a[href='demo/index.html']", "demo/index.html")
    click(browser, "a[href='01_one.html']", "demo/01_one.html")
    click(browser, ".contents li:last-child a", "demo/01_one.html#part-3")
    assert browser.run("document.querySelector(':target').textContent").startswith("The verdict")
    top = browser.run("document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < browser.run("innerHeight")


def test_the_contents_work_by_keyboard(browser, outputs):
    load(browser, outputs, "demo/01_one.html")
    for _ in range(2):
        browser.key("Tab")
    assert browser.run("document.activeElement.textContent") == "Is it so?"
    browser.key("Enter", "\r")
    browser.until("location.hash == '#part-2'")


def click(browser, selector, expected):
    browser.drag(*middle(browser, f"document.querySelector({json.dumps(selector)})"), 0, 0)
    browser.until(f"location.href.endsWith({json.dumps(expected)}) && document.readyState == 'complete'")


# -- the meshes -------------------------------------------------------------------------------------------------------


def test_a_mesh_turns_by_mouse_keys_and_buttons_and_its_neighbour_with_it(browser, outputs):
    load(browser, outputs, "demo/index.html")
    start = turned(browser)
    known = "document.querySelectorAll('.card')[1]"
    assert browser.run(f"{known}.querySelectorAll('canvas').length") == 2, "made and truth"
    browser.drag(*middle(browser, f"{known}.querySelector('canvas')"), 60, 20)
    dragged = after(browser, start)
    assert dragged[0] == start[0] and dragged[1] != start[1] and dragged[2] != start[2]
    browser.run(f"{known}.querySelector('canvas').focus()")
    seen = [dragged]
    for key in ("ArrowLeft", "ArrowUp", "+"):
        browser.key(key)
        seen.append(after(browser, seen[-1]))
    browser.key("0")
    assert after(browser, seen[-1]) == start, "0 goes back to where it began"
    browser.run(f"{known}.querySelector('[data-key=ArrowRight]').click()")
    assert after(browser, start)[2] != start[2]
    only_files(browser, outputs)


@pytest.mark.parametrize(("key", "grows"), [("+", True), ("-", False)])
def test_a_mesh_covers_what_its_still_picture_covers_and_more_when_nearer(browser, outputs, key, grows):
    load(browser, outputs, "demo/index.html")
    start = turned(browser)
    drawn, still = browser.run(COVER), Image.open(outputs / "demo" / "gallery" / "02_truth.png").convert("RGBA")
    assert drawn == pytest.approx((np.asarray(still)[..., 3] > 128).mean(), abs=0.01) and 0.1 < drawn < 0.9
    browser.run("document.querySelectorAll('.card canvas')[2].focus()")
    browser.key(key)
    after(browser, start)
    assert (browser.run(COVER) > drawn) == grows


COVER = """(() => {
  const canvas = document.querySelectorAll(".card canvas")[2];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, k) => k % 4 === 3 && value > 128).length / canvas.width / canvas.height;
})()"""


def middle(browser, element):
    """Where in the window an element is, once it was scrolled into it."""
    browser.run(f"{element}.scrollIntoView({{block: 'center'}})")
    return browser.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({element}.getClientRects()[0])")


def after(browser, before):
    """The canvases, once they have changed."""
    browser.until(f"JSON.stringify({PIXELS}) != {json.dumps(json.dumps(before, separators=(',', ':')))}")
    return browser.run(PIXELS)


def test_the_wheel_scrolls_the_page_until_a_mesh_is_clicked(browser, outputs):
    load(browser, outputs, "demo/index.html")
    start = turned(browser)
    x, y = middle(browser, "document.querySelector('canvas')")
    wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -60}
    top = browser.run("scrollY")
    browser.call("Input.dispatchMouseEvent", **wheel)
    browser.until(f"scrollY != {top}")
    assert browser.run(PIXELS) == start
    x, y = middle(browser, "document.querySelector('canvas')")
    browser.drag(x, y, 0, 0)
    top = browser.run("scrollY")
    browser.call("Input.dispatchMouseEvent", **wheel | {"x": x, "y": y})
    after(browser, start)
    assert browser.run("scrollY") == top


def test_without_webgl_there_are_still_pictures_and_a_word_why(browser, outputs):
    deaf = "HTMLCanvasElement.prototype.getContext = () => null"
    mark = browser.call("Page.addScriptToEvaluateOnNewDocument", source=deaf)["identifier"]
    try:
        load(browser, outputs, "demo/index.html")
        assert "no WebGL" in browser.run("document.getElementById('gallery-note').textContent")
        assert browser.run("document.querySelectorAll('canvas').length") == 0
        browser.run("document.querySelector('#gallery').scrollIntoView()")
        browser.until("[...document.querySelectorAll('.card img')].every((image) => image.naturalWidth > 0)")
        assert browser.run("[...document.querySelectorAll('.turn')].every((group) => group.hidden)")
        only_files(browser, outputs)
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=mark)


def test_a_mesh_that_is_missing_is_told_and_its_neighbours_turn(browser, outputs, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(outputs / "demo", moved)
    (moved / "gallery" / "02_truth.js").unlink()
    browser.open((moved / "index.html").as_uri())
    turned(browser, 2)
    browser.until("document.querySelector('#gallery').textContent.includes('gallery/02_truth.js is missing')")


# -- for all ----------------------------------------------------------------------------------------------------------

AUDIT = """(() => {
  const found = [];
  const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (element) => element.checkVisibility();
  const named = (element) => (element.getAttribute("aria-label") || element.textContent || "").trim()
    || [...element.querySelectorAll("img[alt]")].some((image) => image.alt);
  if (!document.documentElement.lang || !document.title.trim()) say("no language or title", document.documentElement);
  if (all("main").length !== 1 || all("h1").length !== 1) say("one main and one h1 wanted", document.body);
  let level = 0;
  for (const head of all("h1, h2, h3, h4, h5, h6").filter(shown)) {
    if (Number(head.tagName[1]) > level + 1) say(`a heading skips a level after h${level}`, head);
    level = Number(head.tagName[1]);
  }
  for (const image of all("img")) if (!(image.getAttribute("alt") || "").trim()) say("a picture without words", image);
  for (const drawn of all("svg[role], canvas")) if (!drawn.getAttribute("aria-label")) say("no label", drawn);
  for (const canvas of all("canvas")) {
    if (!canvas.getAttribute("role") || canvas.tabIndex !== 0) say("no role, no stop", canvas);
  }
  for (const element of all("a[href], button, summary, [role=region], [role=group], nav")) {
    if (!named(element)) say("no name", element);
  }
  const ids = all("[id]").map((element) => element.id);
  for (const element of all("[id]")) if (ids.filter((id) => id === element.id).length > 1) say("an id twice", element);
  for (const element of all("[tabindex]")) if (element.tabIndex > 0) say("a positive tabindex", element);
  for (const head of all("main section th, main header th")) if (!head.scope) say("a head of no row or column", head);
  for (const box of all("*")) {
    const style = getComputedStyle(box);
    const scrolls = box.scrollWidth > box.clientWidth + 1 && /auto|scroll/.test(style.overflowX) && shown(box);
    if (CHECK_SCROLL && scrolls && box.tabIndex !== 0 && !box.querySelector("a, button")) say("by mouse alone", box);
  }
  for (const target of all("button, .turn button")) {
    const { width, height } = target.getBoundingClientRect();
    if (shown(target) && (width < 24 || height < 24)) say("too small to hit", target);
  }

  // Contrast: of each text, against what lies behind it.
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim() && !/^(SCRIPT|STYLE)$/.test(element.tagName);
    if (!words || seen.has(element) || !shown(element)) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    if (Number(style.opacity) === 0) continue;
    const ink = parse(element.namespaceURI.includes("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) say(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}`, element);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_and_used_by_all(browser, outputs, name, dark):
    load(browser, outputs, name, dark=dark)
    if browser.run("!!document.querySelector('#gallery')"):
        turned(browser)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    ours = not name.endswith("01_one.html")
    found = browser.run(AUDIT.replace("CHECK_SCROLL", str(ours).lower()))
    assert found == []


@pytest.mark.parametrize("fault", [
    "document.querySelector('img').alt = ''",
    "document.querySelector('h2').outerHTML = '<h4>x</h4>'",
    "document.querySelector('.quiet').style.color = 'silver'",
    "document.querySelector('button').ariaLabel = ''; document.querySelector('button').textContent = ''",
    "document.querySelector('section').id = 'origin'",
    "document.querySelector('a').tabIndex = 3",
    "document.querySelector('th').removeAttribute('scope')",
])  # fmt: skip
def test_the_check_would_notice(browser, outputs, fault):
    load(browser, outputs, "demo/index.html")
    browser.run(f"{{ {fault} }}")
    assert len(browser.run(AUDIT.replace("CHECK_SCROLL", "true"))) >= 1


@pytest.mark.parametrize("name", [name for name in PAGES if "01_one" not in name])
def test_a_page_fits_a_phone(browser, outputs, name):
    load(browser, outputs, name, width=390, height=844)
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_focus_is_to_be_seen_and_goes_everywhere(browser, outputs):
    load(browser, outputs, "demo/index.html")
    turned(browser)
    browser.run("document.body.focus()")
    stops = set()
    for _ in range(200):
        browser.key("Tab")
        told = "[at.tagName + '.' + at.className, parseFloat(getComputedStyle(at).outlineWidth)]"
        stop, width = browser.run(f"(at => {told})(document.activeElement)")
        if stop.startswith("BODY"):
            break
        stops.add(stop.split(".")[0])
        assert width >= 2, stop
    assert stops >= {"A", "BUTTON", "CANVAS", "DIV", "SUMMARY"}


def test_nothing_moves_by_itself(browser, outputs):
    load(browser, outputs, "demo/index.html")
    turned(browser)
    assert browser.run("document.getAnimations().length") == 0
    assert browser.run(
        "[...document.querySelectorAll('*')].every((e) => getComputedStyle(e).transitionDuration == '0s')"
    )
