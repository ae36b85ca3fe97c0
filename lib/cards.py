"""The gallery's part of a run's page: a card a shape, with still pictures that viewer.js turns into meshes."""

from pathlib import Path

from lib.gallery import manifest
from lib.markup import address, text


def section(run: Path) -> str:
    """The gallery's part of the page; nothing where there is none."""
    groups = manifest(run).get("groups", [])
    if not groups:
        return ""
    how = (
        "Drag a mesh, or use the arrow keys, to turn it; + and − zoom, as the wheel does once a mesh is clicked; "
        "0 goes back. What stands in one card turns together."
    )
    still = "Still pictures; JavaScript and WebGL would let you turn them."
    parts = "".join(
        f"<h3>{text(group['title'])}</h3>\n<p>{text(group['words'])}</p>\n"
        f'<div class="cards">\n{"".join(article(run, entry) for entry in group["cards"])}</div>\n'
        for group in groups
    )
    return f"""<section id="gallery">
<h2>Gallery</h2>
<p class="quiet" id="gallery-note" role="status" data-how="{how}">{still}</p>
{parts}<script src="gallery/viewer.js" defer></script>
</section>
"""


def article(run: Path, entry: dict) -> str:
    name = text(entry["name"])
    figures = ""
    if entry["picture"]:
        image = (
            f'<img src="gallery/{text(entry["picture"])}" alt="The picture that came in for {name}." loading="lazy">'
        )
        figures = f"<figure><div>{image}</div><figcaption>picture</figcaption></figure>\n"
    for shape in entry["meshes"]:
        file, kind = text(shape["file"]), text(shape["kind"])
        faces = f"{shape['shown']:,} of " * (shape["shown"] < shape["faces"]) + f"{shape['faces']:,} faces"
        glb = f" · {saved}" if (saved := glb_link(run, shape["file"], entry["name"])) else ""
        alt = f"{'Mesh made for' if kind == 'made' else 'True mesh of'} {name}."
        image = f'<img src="gallery/{file}.png" alt="{alt}" loading="lazy">'
        caption = f"<figcaption>{kind}{glb}<br>{faces}</figcaption>"
        figures += f'<figure data-mesh="{file}" data-kind="{kind}"><div>{image}</div>{caption}</figure>\n'
    why = "".join(f'<p class="reason">{text(reason)}</p>\n' for reason in entry["why"])
    told = f'<p class="quiet">{text(entry["told"])}</p>\n' if entry["told"] else ""
    signs = {
        "ArrowLeft": ("←", "left"),
        "ArrowRight": ("→", "right"),
        "ArrowUp": ("↑", "up"),
        "ArrowDown": ("↓", "down"),
    }
    keys = {key: (sign, f"Turn {where}") for key, (sign, where) in signs.items()}
    keys |= {"+": ("+", "Nearer"), "-": ("−", "Further"), "0": ("Reset", "Reset the view")}
    buttons = "".join(
        f'<button type="button" data-key="{key}" aria-label="{label}">{sign}</button>'
        for key, (sign, label) in keys.items()
    )
    place = " ".join(f"{value:.6g}" for value in entry["middle"])
    radius = f' data-middle="{place}" data-radius="{entry["radius"]:.6g}"' if entry["meshes"] else ""
    return f"""<article class="card"{radius}>
<h4>{name}</h4>
{told}{why}<div class="side">
{figures}</div>
<div class="turn" role="group" aria-label="Turn {name}" hidden>{buttons}</div>
</article>
"""


def glb_link(run: Path, file: str, name: str) -> str:
    """A shared log leaves the .glb out; then there is no link."""
    if not (run / "gallery" / f"{file}.glb").exists():
        return ""
    return f'<a href="{address(f"gallery/{file}.glb")}" download aria-label="GLB of {text(name)}">GLB</a>'


STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1.1rem; }
.card { border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.1rem 1.1rem; }
.card h4 { font-size: .95rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
.card p { margin: 0 0 .4rem; }
.side { display: flex; gap: .7rem; }
.side figure { flex: 1; min-width: 0; margin: .5rem 0 0; }
.side figure > div { aspect-ratio: 1; background: var(--stage); border-radius: 8px; overflow: hidden; }
.side img, .side canvas { display: block; width: 100%; height: 100%; object-fit: contain; border-radius: 8px; }
.side img[hidden] { display: none; }
.side figcaption { margin-top: .35rem; line-height: 1.45; }
canvas { cursor: grab; touch-action: pan-y; }
canvas:active { cursor: grabbing; }
canvas:focus-visible { outline-offset: -3px; }
.turn { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .8rem; }
.turn[hidden] { display: none; }
.turn button { min-width: 2rem; height: 2rem; padding: 0 .5rem; font: inherit; font-size: .88rem; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; cursor: pointer; }
.turn button:hover { border-color: var(--grey); }
@media (max-width: 40rem) { .side { flex-wrap: wrap; } .side figure[data-mesh] { flex: 1 0 40%; }
  .side figure:not([data-mesh]) { flex: 1 0 100%; display: flex; align-items: end; gap: .7rem; }
  .side figure:not([data-mesh]) > div { flex: 0 0 40%; }
  .turn { gap: .2rem; } .turn button { min-width: 1.8rem; padding: 0 .4rem; } }
"""
