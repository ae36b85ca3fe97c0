from test_gallery import NAME, page_of, run, sections  # noqa: F401 (run is a fixture)

from lib import cards, gallery


def test_names_are_only_text_and_every_picture_has_words(run):  # noqa: F811
    gallery.build(run, sections(run))
    found = page_of(run)
    assert found.open == [] and NAME in found.text
    assert "onerror" not in {key for _, attributes in found.tags for key in attributes}
    assert all(tag["alt"] for tag in found.all("img"))
    assert {tag["alt"] for tag in found.all("img")} >= {f"Mesh made for {NAME}.", "True mesh of box_0badcafe_view_002."}


def test_it_needs_no_address_but_files_beside_the_page(run):  # noqa: F811
    gallery.build(run, sections(run))
    found = page_of(run)
    files = [tag.get("src") or tag["href"] for kind in ("img", "a", "script") for tag in found.all(kind)]
    assert len(files) > 8
    for file in files:
        assert file.startswith("gallery/") and (run / file).is_file()
    for tag in found.all("figure"):
        assert "data-mesh" not in tag or (run / "gallery" / f"{tag['data-mesh']}.js").is_file()


def test_a_glb_that_is_not_there_has_no_link(run):  # noqa: F811
    gallery.build(run, sections(run))
    for path in (run / "gallery").glob("*.glb"):
        path.unlink()
    assert page_of(run).all("a") == [] and "GLB" not in page_of(run).text


def test_without_scripts_it_says_that_these_are_still_pictures(run):  # noqa: F811
    assert cards.section(run) == ""
    gallery.build(run, sections(run))
    assert "Still pictures" in page_of(run).text
    assert all("hidden" in tag for tag in page_of(run).all("div") if tag.get("class") == "turn")


def test_headings_go_down_step_by_step(run):  # noqa: F811
    gallery.build(run, sections(run))
    assert [tag for tag, _ in page_of(run).tags if tag in ("h2", "h3", "h4")] == ["h2", "h3", "h4", "h4"]
