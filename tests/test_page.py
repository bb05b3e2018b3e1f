"""The page of a config: one folder for one set of stages."""

from pipeline import page


def test_a_page_is_known_by_its_stages(tmp_path):
    first = page.folder(tmp_path, "quickstart", ["b" * 64, "a" * 64, "a" * 64])
    assert first == page.folder(tmp_path, "quickstart", ["a" * 64, "b" * 64])
    assert first.parent == tmp_path / "pages" and first.name.startswith("quickstart-") and len(first.name) == 19
    assert first != page.folder(tmp_path, "quickstart", ["a" * 64])
