"""The documentation site: every page is in it, no link is dead, and nothing comes from another host."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from tools import site

GENERATOR = importlib.util.find_spec("zensical")
generated = pytest.mark.skipif(GENERATOR is None, reason="`make docs` installs the generator")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with few pages, and the settings of ours."""
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    settings = (site.ROOT / "docs" / "site.yml").read_text().partition("\nnav:")[0]
    names = ["index.md", "pages.md", "security-policy.md", "other.md"]
    (root / "docs" / "site.yml").write_text("\n".join([f"{settings}\nnav:", *(f"  - {name}" for name in names), ""]))
    (root / "README.md").write_text("# One\n\n[other](docs/other.md#a-b), [policy](SECURITY.md)\n")
    (root / "SECURITY.md").write_text("# Policy\n\n[one](README.md)\n")
    (root / "docs" / "README.md").write_text("# Pages\n\n[other](other.md), [one](../README.md)\n")
    (root / "docs" / "other.md").write_text(
        "# Other\n\n## A `b`\n\n[pages](README.md), [elsewhere](https://a.example)\n"
    )
    return root


@generated
def test_every_page_becomes_one_of_the_site(repository: Path, tmp_path: Path) -> None:
    assert site.build(tmp_path, repository) == 4
    built = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert built == {"index.html", "pages.html", "security-policy.html", "other.html", "404.html"}
    assert 'href="other.html#a-b"' in (tmp_path / "site" / "index.html").read_text()


@generated
@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nowhere", "#nowhere"])
def test_dead_link_ends_the_build(repository: Path, tmp_path: Path, link: str) -> None:
    with (repository / "docs" / "other.md").open("a") as page:
        page.write(f"\n[dead]({link})\n")
    with pytest.raises(site.BadSite, match="does not exist"):
        site.build(tmp_path, repository)


def test_page_that_the_navigation_lacks_ends_the_build(repository: Path, tmp_path: Path) -> None:
    shutil.copy(repository / "docs" / "other.md", repository / "docs" / "forgotten.md")
    with pytest.raises(site.BadSite, match=r"^forgotten\.md is not in the navigation"):
        site.build(tmp_path, repository)


@pytest.mark.parametrize("link", ["![a](nowhere.png)", "[a](../proto/nowhere.proto)"])
def test_picture_or_file_that_is_missing_ends_the_build(repository: Path, tmp_path: Path, link: str) -> None:
    (repository / "docs" / "other.md").write_text(f"# Other\n\n{link}\n")
    with pytest.raises(site.BadSite, match=r"other\.md: there is no .*nowhere"):
        site.build(tmp_path, repository)


def test_our_navigation_has_every_page() -> None:
    docs = site.ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {"README.md"}
    assert site.unlisted((docs / "site.yml").read_text(), pages | set(site.PLACES.values())) == []


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://a.example/b.js">',
        '<link rel="stylesheet" href="//a.example/b.css">',
        '<img alt="" src="http://a.example/b.png">',
    ],
)
def test_what_comes_from_another_host_is_found(tmp_path: Path, tag: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f'<a href="https://b.example/">kept</a><script src="b.js"></script>{tag}')
    assert len(site.loaded(page)) == 1


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("README.md", "[a](docs/data.md#b)", "[a](data.md#b)"),
        ("README.md", "![a](docs/answers.png)", "![a](answers.png)"),
        ("docs/data.md", "[a](../SECURITY.md) [b](README.md)", "[a](security-policy.md) [b](pages.md)"),
        ("docs/data.md", "[a](https://a.example/b) [c](#d)", "[a](https://a.example/b) [c](#d)"),
        ("docs/reference/errors.md", "[a](../errors.md) [b](metrics.md)", "[a](../errors.md) [b](metrics.md)"),
    ],
)
def test_links_of_a_page_lead_to_places_of_the_site(page: str, text: str, expected: str) -> None:
    assert site.linked(text, page) == expected


def test_nested_lists_and_code_in_tables_look_as_elsewhere() -> None:
    text = "- a\n  - b\n\n| `a\\|b` | c \\| d |\n\n    `e\\|f`\n"
    assert site.adapted(text) == "- a\n    - b\n\n| `a|b` | c \\| d |\n\n    `e\\|f`\n"
