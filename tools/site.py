"""`make docs`: the documentation site in `.cache/site`, from README.md, SECURITY.md and `docs/`.

The pages are those that GitHub shows. Only links that leave `docs/`, and what the generator reads otherwise, change. A
dead link, a page that the navigation lacks, or anything that a browser would load from another host ends the build.
"""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from tools import reference

ROOT = Path(__file__).parents[1]
# Files of the repository, and their places in the site. `docs/README.md` would otherwise be its first page.
PLACES = {"README.md": "index.md", "SECURITY.md": "security-policy.md", "docs/README.md": "pages.md"}
_LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
# What a browser loads by itself. Links for the reader may lead anywhere.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "use": "href"}


class BadSite(Exception):
    """The site cannot be published: one line for each reason."""


def build(out: Path, root: Path = ROOT) -> int:
    """Builds the site of the repository `root` as `out/site` and returns the number of pages; raises BadSite."""
    source, site = out / "site-source", out / "site"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "docs", source, ignore=shutil.ignore_patterns("site.yml"))
    if (source / "reference").is_dir():
        reference.write(source / "reference")
    for page, place in PLACES.items():
        (source / place).write_text((root / page).read_text())
    (source / "README.md").unlink()
    pages = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*.md"))}
    origins = {place: page for page, place in PLACES.items()}
    for name, path in pages.items():
        path.write_text(adapted(linked(path.read_text(), origins.get(name, f"docs/{name}"))))
    settings = (root / "docs" / "site.yml").read_text()
    (out / "site.yml").write_text(settings)
    problems = unlisted(settings, set(pages))
    problems += [f"{name}: there is no {file}" for name, path in pages.items() for file in lost(path)]
    if problems:
        raise BadSite("\n".join(problems))
    _run_generator(out / "site.yml")
    built = sorted(site.rglob("*.html"))
    foreign = [f"{page.relative_to(site)}: loads {url}" for page in built for url in loaded(page)]
    if foreign:
        raise BadSite("\n".join(foreign))
    return len(pages)


def linked(text: str, page: str) -> str:
    """The text of a page of the repository, with its links as they are in the site."""
    folder = Path(page).parent
    here = Path(_place(page)).parent

    def rewritten(found: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", found[2]):
            return found[0]
        target = _place(os.path.normpath(folder / found[2]))
        return f"{found[1]}{os.path.relpath(target, here)}{found[3]}"

    return _LINK.sub(rewritten, text)


def adapted(text: str) -> str:
    """The text for a generator that reads two things otherwise than GitHub: a list within a list is indented by four
    spaces, and in a table's code `|` is not escaped."""
    text = re.sub(r"^  (?=[-*] )", "    ", text, flags=re.MULTILINE)
    return re.sub(
        r"^\|.*$",
        lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]),
        text,
        flags=re.MULTILINE,
    )


def _place(file: str) -> str:
    return PLACES.get(file, file.removeprefix("docs/"))


def unlisted(settings: str, pages: set[str]) -> list[str]:
    """Pages that the navigation lacks, and entries of it without a page."""
    listed = set(re.findall(r"[\w/.-]+\.md$", settings.partition("\nnav:")[2], re.MULTILINE))
    return [f"{page} is not in the navigation of docs/site.yml" for page in sorted(pages - listed)] + [
        f"{page} is in the navigation of docs/site.yml, but is no page" for page in sorted(listed - pages)
    ]


def lost(page: Path) -> list[str]:
    """Pictures and files that a page refers to and that are not there; the generator looks at pages alone."""
    named = [found[1] for found in _LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", found[1])]
    return [name for name in named if not name.endswith(".md") and not (page.parent / name).is_file()]


def loaded(page: Path) -> list[str]:
    """Addresses on other hosts that a browser would load with a built page."""
    found = _Loaded()
    found.feed(page.read_text())
    return found.urls


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        url = dict(attrs).get(_LOADED.get(tag, "")) or ""
        if re.match(r"(https?:)?//", url):
            self.urls.append(url)


def _run_generator(settings: Path) -> None:
    # `--clean`: pages from its cache are not checked.
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(settings)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        # Colours, a frame, and the stack of its own errors.
        text = re.sub(r"\x1b\[[\d;]*m", "", ended.stdout + ended.stderr).partition("Traceback")[0]
        raise BadSite(text.strip())


def main() -> None:
    out = ROOT / ".cache"
    out.mkdir(exist_ok=True)
    try:
        pages = build(out)
    except BadSite as error:
        sys.exit(f"docs: {error}")
    print(f"{pages} pages in .cache/site; to read them with the search: python3 -m http.server -d .cache/site 8080")


if __name__ == "__main__":
    main()
