import base64
import io
import json
import platform
import random
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import trimesh
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from test_gallery import write
from test_page import PNG, Page, record

from lib import batch, gallery, mesh, page, parcel

HOME = str(Path.home())
HOST = "secretive-machine"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that says at every turn where it was, in a repo below somebody's home, with data elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    run = Path("outputs/demo")
    told = f"{tmp_path}/data/a.obj {HOME}/b.obj /mnt/vault/meshes/c.obj /home/eve/d.obj on {HOST}, file://{HOME}/e"
    outputs = [
        new_output("stream", text=f"\x1b[0;32m{told}\x1b[0m"),
        new_output(
            "display_data",
            {"image/png": f"{PNG}{HOME}/", "text/html": f'<img src="data:image/png;base64,{HOME}/x">{told}'},
        ),
        new_output("error", ename="ValueError", evalue=told, traceback=[told]),
    ]
    nb = new_notebook(cells=[new_markdown_cell("# One"), new_code_cell(f"# {told}", outputs=outputs)])
    nb.metadata.widgets = {"state": {}}
    nb.metadata.papermill = {"parameters": {"meshes": "/mnt/vault/meshes"}}
    (run / "01_one").mkdir(parents=True)
    nbformat.write(nb, run / "01_one.ipynb")
    (run / "01_one.csv").write_text(f"item,status,reason,seconds,command\na,quarantined,{told},1,python\n")
    (run / "01_one" / "curve.csv").write_text("step,loss\n1,2\n2,1\n")
    for name in ("model.safetensors", "resume.pt", "train.log"):
        (run / "01_one" / name).write_bytes(b"weights")
    (run / "01_one.log").write_text(told)
    (run / "01_one.html").write_text(told)
    write(run / "07_generate" / "ball.glb", trimesh.creation.icosphere(subdivisions=2))
    section = record()["sections"]["01_one"] | {"parameters": {"meshes": "/mnt/vault/meshes"}, "reason": told}
    about = record(status="completed", cwd=str(tmp_path), pid=7, host=HOST, sections={"01_one": section}, text=told)
    (run / "run.json").write_text(json.dumps(about))
    gallery.build(run, about["sections"])
    page.write(run, about)
    return run


def texts(folder):
    return {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_what_explains_the_run_and_no_data(run):
    target, files = parcel.pack(run)
    assert target == Path("outputs/demo_2026-01-02")
    names = {name for _, name in files}
    assert {"index.html", "run.json", "01_one.ipynb", "01_one.csv", "01_one/curve.csv", "gallery/viewer.js"} <= names
    assert not [
        name
        for name in names
        if name.endswith((".safetensors", ".pt", ".log", ".glb", ".html")) and name != "index.html"
    ]
    assert sum(size for size, _ in files) < 1_000_000


def test_it_tells_nothing_of_the_machine_it_was_written_on(run, tmp_path):
    target, _ = parcel.pack(run)
    nb = nbformat.read(target / "01_one.ipynb", 4)
    told = "data/a.obj ~/b.obj ~/meshes/c.obj ~/d.obj on a machine, file://~/e"
    assert nb.cells[1].source == f"# {told}" and nb.cells[1].outputs[2].evalue == told
    pictures = nb.cells[1].outputs[1].data
    assert pictures["image/png"] == f"{PNG}{HOME}/" and f"base64,{HOME}/x" in pictures["text/html"], (
        "pixels are no paths"
    )
    nb.cells[1].outputs.pop(1)
    nbformat.write(nb, target / "01_one.ipynb")
    for path, text in texts(target).items():
        for secret in (HOST, f"{HOME}/", str(tmp_path), "/mnt/vault", "/home/eve"):
            assert secret not in re.sub(parcel.BINARY, "", text), path


def test_where_a_link_to_the_data_leads_is_not_told(run, tmp_path, tmp_path_factory):
    vault = tmp_path_factory.mktemp("vault")
    Path("data").mkdir()
    Path("data/linked").symlink_to(vault)
    about = json.loads((run / "run.json").read_text())
    about["sections"]["01_one"]["parameters"] |= {"dataset": "data/linked"}
    hide = parcel.veil(about)
    assert hide(f"{vault}/cup/256_cup at {tmp_path}/data/linked") == "data/linked/cup/256_cup at data/linked"
    assert hide(f"{vault}_of_others") == f"{vault}_of_others"


def test_every_link_of_its_page_leads_to_a_file_in_it(run):
    target, _ = parcel.pack(run)
    Path("outputs/index.html").write_text("")
    found = Page((target / "index.html").read_text(encoding="utf-8"))
    links = [tag.get("href") or tag.get("src") for kind in ("a", "img", "script") for tag in found.all(kind)]
    files = [link for link in links if not link.startswith(("#", "data:"))]
    assert {"01_one.ipynb", "run.json", "gallery/viewer.js"} <= set(files)
    assert all((target / file).is_file() for file in files)
    assert "ball" in found.text and "Quarantine: 1" in found.text and found.all("svg")


def test_its_notebooks_open_on_github(run):
    target, _ = parcel.pack(run)
    nb = nbformat.read(target / "01_one.ipynb", 4)
    nbformat.validate(nb)
    assert "widgets" not in nb.metadata and (target / "01_one.ipynb").stat().st_size < 2_000_000


def test_again_it_replaces_its_own_log_and_nothing_else(run):
    target, _ = parcel.pack(run)
    (target / "answer.md").write_text("mine")
    before = {name for _, name in parcel.weigh(target)}
    (run / "01_one.ipynb").unlink()
    parcel.pack(run)
    assert {name for _, name in parcel.weigh(target)} == before - {"01_one.ipynb"}
    for folder in (run, Path("thesis")):
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(ValueError, match="Name another folder"):
            parcel.pack(run, folder)


# -- small ------------------------------------------------------------------------------------------------------------


def picture_output(pixels, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), mode).save(buffer, "png")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<Image>"}
    return new_output("display_data", data, metadata={"image/png": {"alt": "what it shows"}})


def opened(output, kind):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data[kind]))).convert("RGB")).astype(int)


def test_shades_become_a_jpeg_and_lines_a_palette_and_both_look_the_same():
    y, x = np.mgrid[0:400, 0:600]
    shades = np.stack([128 + 90 * np.sin(x / 50) * np.cos(y / 70), x / 3, y / 2], -1) + np.random.default_rng(0).normal(
        0, 3, (400, 600, 1)
    )
    lines = np.full((400, 600, 3), 250)
    lines[np.abs(y - 200 - 100 * np.sin(x / 40)) < 2] = 74, 123, 166
    for pixels, kind, far in ((shades, "image/jpeg", 4), (lines, "image/png", 0)):
        pixels = np.clip(pixels, 0, 255)
        output = picture_output(pixels)
        before = len(output.data["image/png"])
        parcel.lighter(output)
        assert set(output.data) == {kind, "text/plain"} and output.metadata[kind] == {"alt": "what it shows"}
        assert np.abs(opened(output, kind) - pixels.astype(np.uint8)).mean() <= far
        assert len(output.data[kind]) < before / (3 if far else 1)
        again = dict(output.data)
        parcel.lighter(output)
        assert dict(output.data) == again


def test_a_picture_that_is_clear_or_damaged_or_none_stays():
    clear = picture_output(np.random.default_rng(0).integers(0, 255, (99, 99, 4)), "RGBA")
    for output in (clear, new_output("display_data", {"image/png": "bm9uZQ=="}), new_output("stream", text="x")):
        before = json.dumps(output)
        parcel.lighter(output)
        assert json.dumps(output) == before


def test_a_gallery_keeps_cards_from_the_first_to_the_last_with_the_meshes_as_they_are(run):
    groups = [{"title": name, "cards": [{"name": k} for k in range(count)]} for name, count in (("a", 8), ("b", 4))]
    assert [[card["name"] for card in group["cards"]] for group in parcel.fewer(groups)] == [[0, 2, 5, 7], [0, 3]]
    assert parcel.fewer([{"cards": [1, 2]}]) == [{"cards": [1, 2]}] and parcel.fewer([]) == []
    own = run / "gallery" / "01_made.glb"
    V, F = mesh.read(own)
    trimesh.Trimesh(V, F, process=False).export(own)  # as earlier galleries were written
    own.with_suffix(".js").write_text(gallery.script(own))
    target, _ = parcel.pack(run)
    script = target / "gallery" / "01_made.js"
    (run / "short.glb").write_bytes(gallery.unscripted(script.read_text()))
    assert all(map(np.array_equal, mesh.read(run / "short.glb"), (V, F)))
    assert script.stat().st_size < 0.8 * own.with_suffix(".js").stat().st_size
    other, _ = parcel.pack(target, Path("outputs/again"))  # a log of a log is the same
    assert (other / "gallery" / "01_made.js").read_text() == script.read_text()


def test_a_damaged_mesh_of_a_gallery_stays_for_the_page_to_tell(run):
    (run / "gallery" / "01_made.js").write_text('mesh("01_made", "Z2xURg==");')
    target, _ = parcel.pack(run)
    assert (target / "gallery" / "01_made.js").read_text() == 'mesh("01_made", "Z2xURg==");'


def test_a_ledger_has_six_digits_and_the_commands_of_what_was_put_aside(run):
    rows = ["a,done,,0.123456789012,again a,-1.5e-17,abc.1234567", "b,quarantined,why,1.0,again b,2.00000000000001,"]
    (run / "01_one.csv").write_text("\n".join(["item,status,reason,seconds,command,off,name", *rows, ""]))
    target, _ = parcel.pack(run)
    assert (target / "01_one.csv").read_text().splitlines()[1:] == [
        "b,quarantined,why,1.0,again b,2,",
        "a,done,,0.123457,,-1.5e-17,abc.1234567",
    ]


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "{", "[]", '{"status": "completed"}'])
def test_a_folder_that_is_no_run_is_refused(run, content, capsys):
    Path("other").mkdir()
    if content:
        Path("other/run.json").write_text(content)
    assert batch.main(["--log", "other"]) == 1
    told = capsys.readouterr().err
    assert "other is not the folder of a run" in told and "in outputs/ there is demo" in told


def test_a_run_that_is_under_way_is_refused(run):
    about = json.loads((run / "run.json").read_text()) | {"status": "running"}
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="still running"):
        parcel.pack(run)


def test_what_is_too_large_is_refused_by_name_before_anything_is_written(run, monkeypatch):
    monkeypatch.setattr(parcel, "LARGEST", 20_000)
    with pytest.raises(ValueError, match=r"the log would have 0\.\d MB.*gallery/01_made\.js"):
        parcel.pack(run)
    assert not Path("outputs/demo_2026-01-02").exists()
    monkeypatch.setattr(parcel, "LIMIT", 100)
    with pytest.raises(ValueError, match=r"01_one\.ipynb is over"):
        parcel.pack(run)


def test_a_long_ledger_keeps_what_was_put_aside_and_says_what_is_left_out(run):
    rows = [f"item_{number},done,,{random.random()},x" for number in range(20_000)]
    rows[-1] = "bad,quarantined,why,1,again"
    (run / "01_one.csv").write_text("item,status,reason,seconds,command\n" + "\n".join(rows) + "\n")
    target, _ = parcel.pack(run)
    kept = (target / "01_one.csv").read_text()
    assert len(kept) <= parcel.LEDGER + 100 and kept.endswith(",\n")
    assert kept.startswith("item,status,reason,seconds,command\nbad,quarantined,why,1,again\nitem_0,done")
    told = f"01_one.csv: {len(kept.splitlines()) - 1:,} of 20,000 rows"
    assert json.loads((target / "run.json").read_text())["shortened"] == [told]
    assert told in Page((target / "index.html").read_text(encoding="utf-8")).text


def test_the_command_says_what_it_wrote_and_how_to_commit_it(run, capsys):
    assert batch.main(["--log", "outputs/demo", "outputs/a log"]) == 0
    told = capsys.readouterr().out
    assert "index.html" in told and " MB  in outputs/a log. To commit it: git add -f 'outputs/a log'" in told
    with pytest.raises(SystemExit):
        batch.main(["params/demo.yaml", "--log", "outputs/demo"])
    with pytest.raises(SystemExit):
        batch.main([])
