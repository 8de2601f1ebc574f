"""Pieces of the report's page. Every argument that is text is escaped here, but for what is named `body`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root{--ink:#1f2933;--soft:#52606d;--faint:#7b8794;--line:#e4e7eb;--card:#fff;--page:#f7f8fa;--accent:#3566a8}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1160px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:28px;margin:0;letter-spacing:-.01em}
h2{font-size:19px;margin:0 0 4px}
h3{font-size:15px;margin:0}
.facts,.says{color:var(--faint);margin:4px 0 14px;max-width:90ch}
section{margin-top:40px}
figure,.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:14px;margin-top:14px}
figcaption{font-size:13.5px;margin-bottom:6px}
figcaption span{color:var(--faint);margin-left:6px}
svg.chart{width:100%;height:auto;display:block}
svg.chart text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.hero{display:grid;grid-template-columns:minmax(0,2.4fr) minmax(220px,1fr);gap:14px;align-items:stretch}
.hero>div:first-child{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px}
.tiles{display:grid;gap:14px;align-content:stretch}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px;display:flex;
flex-direction:column;justify-content:center}
.tile b{font-size:24px;letter-spacing:-.02em;white-space:nowrap}
.tile span{color:var(--faint);font-size:13px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--faint);text-align:right;padding:9px 12px;
border-bottom:1px solid var(--line);vertical-align:bottom}
td{padding:7px 12px;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
tbody tr:first-child td{border-top:0}
th:first-child,td:first-child{text-align:left}
svg.spark{width:120px;height:22px;vertical-align:middle}
.plays{display:grid;grid-template-columns:repeat(auto-fill,minmax(500px,1fr));gap:14px;margin-top:14px}
.panel{min-width:0}
.play-head{display:flex;justify-content:space-between;gap:12px;flex-wrap:wrap;margin-bottom:10px}
.play-head .id{color:var(--faint);font-size:13px}
.claims b{font-weight:600}
.claims .true{color:#2b7a4b}.claims .false{color:#b03a3a}.claims i{color:var(--faint);font-style:normal;margin:0 6px}
.badge{align-self:flex-start;font-size:12px;border-radius:99px;padding:2px 10px;
background:#e7f3ec;color:#2b7a4b;white-space:nowrap}
.badge.bad{background:#fbeaea;color:#b03a3a}
.play{display:flex;gap:18px;align-items:flex-start;flex-wrap:wrap}
svg.pixels{width:176px;height:176px;border-radius:8px;flex:none}
.said{flex:1;min-width:240px;border-spacing:0}
.said td{border:0;padding:3px 10px 3px 0;text-align:left;white-space:normal;overflow-wrap:anywhere;vertical-align:top}
.said td:first-child{width:1%}.said td:first-child,.said td.says{white-space:nowrap;max-width:none;margin:0}
.said .num{display:inline}
.belief{display:inline-flex;width:90px;height:9px;border-radius:5px;overflow:hidden;background:var(--line);vertical-align:middle}
.belief i{display:block;height:100%}
.num{color:var(--soft);font-size:12.5px;margin-left:8px;white-space:nowrap}
.seat{color:var(--faint)}
.illegal{color:#b03a3a;font-size:12px}
details{margin-top:10px}
summary{cursor:pointer;color:var(--accent);font-size:13.5px}
.view{margin:10px 0 0;border-left:3px solid var(--line);padding-left:12px}
.view h4{margin:12px 0 4px;font-size:13px}
.msg{display:grid;grid-template-columns:74px minmax(0,1fr);gap:8px;font-size:12.5px;margin:3px 0}
.msg span{color:var(--faint)}
.msg pre,pre.code{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;
font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace}
.msg.assistant pre{font-weight:600}
.fresh{color:var(--faint);font-size:12px;border-top:1px dashed var(--line);margin-top:6px;padding-top:4px}
@media(max-width:760px){.hero{grid-template-columns:1fr}.plays{grid-template-columns:1fr}}
"""


def page(title: str, body: str) -> str:
    """A whole document. Its policy forbids scripts and the network."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><main>
{body}
</main></body></html>
"""


def section(title: str, body: str, says: str = "") -> str:
    """Empty where there is nothing to show."""
    note = f'<p class="says">{escape(says)}</p>' if says else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def card(title: str, says: str, body: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(says)}</span></figcaption>{body}</figure>"
    )


def grid(cards: Iterable[str]) -> str:
    body = "".join(cards)
    return f'<div class="grid">{body}</div>' if body else ""


def tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], last_column: Sequence[str] = ()) -> str:
    """`last_column`: a body (a picture) to end each row with."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}{f'<td>{last_column[index]}</td>' if last_column else ''}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
