"""A self-contained HTML page: pictures are embedded, and nothing is loaded from elsewhere."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; padding: 1rem; max-width:
76rem } h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem
} p.lead { color: #57606a } img { max-width: min(100%, 44rem); height: auto } img.wide { min-width: 44rem; max-width:
100% } .scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } td.text { text-align: left; white-space: normal; overflow-wrap:
anywhere } .cards { display: flex; flex-wrap: wrap; gap: .75rem } .card { border: 1px solid #d8dee4; border-radius: 6px;
padding: .5rem 1rem } .card b { display: block; font-size: 1.4rem } .card span { color: #57606a }
p.note { background: #fff8c5; border: 1px solid #d4a72c; border-radius: 6px; padding: .5rem 1rem }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem } dt { font-weight: 600 } dd { margin: 0;
color: #57606a }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } th, td { border-color: #30363d }
.card { border-color: #30363d } p.lead, .card span, dd { color: #9198a1 } p.note { background: #2e2a1f; border-color:
#9e6a03 } img { border-radius: 6px } a { color: #4493f8 } }
"""


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """Returns the whole page. The sections are HTML; title and lead are text."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<meta name=color-scheme content='light dark'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>"
        f"<p class=lead>{escape(lead)}</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Returns a section with a heading."""
    return f"<h2>{escape(title)}</h2>" + "".join(parts)


def cards(values: Mapping[str, str]) -> str:
    """Returns the key figures as large cards."""
    inner = (
        f"<div class=card><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items()
    )
    return f"<div class=cards>{''.join(inner)}</div>"


def note(text: str) -> str:
    """Returns a highlighted sentence."""
    return f"<p class=note>{escape(text)}</p>"


def text(words: str) -> str:
    """Returns a paragraph."""
    return f"<p>{escape(words)}</p>"


def folded(title: str, part: str) -> str:
    """Returns a collapsed part that opens when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{part}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with names in the first column and right-aligned numbers."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def meanings(values: Mapping[str, str]) -> str:
    """Returns a list of names and what they mean."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(words)}</dd>' for name, words in values.items())}</dl>"


def pairs(values: Mapping[str, Sequence[str]]) -> str:
    """Returns a table of names and texts, one or several for each name."""
    rows = (
        f"<tr><td>{escape(name)}</td>{''.join(f'<td class=text>{escape(text)}</td>' for text in texts)}</tr>"
        for name, texts in values.items()
    )
    return f"<div class=scroll><table><tbody>{''.join(rows)}</tbody></table></div>"


def picture(path: Path, description: str, wide: bool = False) -> str:
    """Returns a PNG file embedded in the page, or a note if it is missing. A `wide` one scrolls on a narrow screen
    instead of shrinking."""
    if not path.is_file():
        return note(f"{path.name} does not exist")
    data = base64.b64encode(path.read_bytes()).decode()
    kind = " class=wide" if wide else ""
    return f'<div class=scroll><img{kind} alt="{escape(description)}" src="data:image/png;base64,{data}"></div>'
