"""One page of all results of a room: words, figures and commands, without the network."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from analyses._run import Header, scripts

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 24px auto; padding: 0 16px; color: #111; background: #fff; overflow-wrap: anywhere; }}
section {{ border-top: 1px solid #ccc; margin-top: 32px; }}
img {{ display: block; max-width: 100%; height: auto; margin: 16px 0; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; font-size: 14px; }}
dt {{ font-weight: 600; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
div.words {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ border: 1px solid #ddd; padding: 2px 8px; text-align: left; }}
code {{ font-size: 13px; }} p.error {{ color: #a00; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def write_page(room: str, out: Path, failed: Mapping[str, str] | None = None) -> Path:
    """Write index.html beside the folders of the scripts."""
    markdown = MarkdownIt("commonmark").enable("table")
    found = [(name, Header.of(module.__doc__)) for name, module in scripts(room)]
    found = [
        row for row in found if (out / row[0] / "result.json").exists() or row[0] in (failed or {})
    ]
    body = [_HEAD.format(title=f"Analyses: {escape(room)}"), "<nav><ol>"]
    body += [f'<li><a href="#{name}">{escape(header.title)}</a></li>' for name, header in found]
    body.append("</ol></nav>")
    body += [f"<p>{escape(line)}</p>" for line in _model(out, [name for name, _ in found])]
    for name, header in found:
        body.append(f'<section id="{name}"><h2>{escape(header.title)}</h2>')
        if name in (failed or {}):
            body.append(f'<p class="error">{escape((failed or {})[name])}</p></section>')
            continue
        body += _result(out, name, header, markdown)
    page = out / "index.html"
    page.write_text("\n".join([*body, "</body></html>"]) + "\n", encoding="utf-8")
    return page


def _model(out: Path, names: Sequence[str]) -> list[str]:
    """Model and kind of outliers, as the first result that knows them has them."""
    for name in names:
        file = out / name / "result.json"
        facts = json.loads(file.read_text(encoding="utf-8"))["facts"] if file.exists() else {}
        if "outliers" in facts:
            return [f"{facts['model']}, images: {facts['images']}.", facts["outliers"]]
    return []


def _result(out: Path, name: str, header: Header, markdown: MarkdownIt) -> list[str]:
    folder = out / name
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = [
        f'<div class="words">{markdown.render((folder / "summary.md").read_text(encoding="utf-8"))}</div>'
    ]
    for picture in sorted(folder.glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        lines.append(
            f'<img alt="{escape(header.title)} ({picture.stem})" src="data:image/png;base64,{data}">'
        )
    links = [
        f'<a href="{name}/{view.name}">{view.stem}</a>' for view in sorted(folder.glob("*.html"))
    ]
    facts = dict(header.fields) | {"Interactive": ", ".join(links)}
    facts |= {key: str(value) for key, value in result["facts"].items()}
    lines.append("<dl>")
    for key, value in facts.items():
        shown = value if key == "Interactive" else escape(value)
        if value:
            lines.append(f"<dt>{escape(key)}</dt><dd>{shown}</dd>")
    return [*lines, "</dl></section>"]
