"""The frame of ``report.html`` and its style sheet, with one column on a phone and more on a wide screen."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title} - yolofit</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{heading}</p><nav>{contents}</nav></header>
<main>
{sections}
</main>
<footer>Written by yolofit at the end of the run.</footer>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light; --ink: #24292f; --muted: #57606a; --rule: #d0d7de; --shade: #f6f8fa; --blue: #0969da; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 16px; color: var(--ink); background: white;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Malgun Gothic", "Noto Sans KR", sans-serif; }
h1 { margin: 8px 0 0; font-size: 28px; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; padding-top: 8px; font-size: 20px; border-top: 1px solid var(--rule); }
header p { margin: 0; color: var(--muted); }
nav { margin-top: 12px; font-size: 14px; line-height: 2; }
nav a { margin-right: 14px; color: var(--blue); text-decoration: none; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; }
.tiles div { padding: 12px; background: var(--shade); border: 1px solid var(--rule); border-radius: 8px; }
.tiles b { display: block; font-size: 24px; line-height: 1.2; }
.tiles span, .note, figcaption, footer { color: var(--muted); font-size: 14px; }
.problem { color: #9a3412; }
ul { padding-left: 20px; }
.scroll { overflow-x: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 12px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 12px; }
figure { margin: 12px 0; min-width: 0; }
.grid figure, .pair figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; }
.grid img, .pair img { width: 100%; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 10px 5px 0; text-align: left; vertical-align: top; }
th { font-weight: 600; }
tr + tr { border-top: 1px solid var(--rule); }
.facts { width: 100%; }
.facts th { width: 34%; font-weight: 400; color: var(--muted); overflow-wrap: anywhere; }
.facts td { overflow-wrap: anywhere; }
.classes { min-width: 620px; width: 100%; }
.classes td, .classes th + th { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.classes tr > th:first-child { position: sticky; left: 0; background: white; max-width: 180px;
  overflow-wrap: anywhere; }
.share { background: linear-gradient(#ddf4ff, #ddf4ff) no-repeat right / calc(var(--share) * 100%) 100%; }
pre { overflow-x: auto; padding: 12px; background: var(--shade); border-radius: 8px; font-size: 13px; }
summary { cursor: pointer; margin: 12px 0; color: var(--blue); }
footer { margin: 48px 0 16px; }
@media (max-width: 640px) { figure.wide img { max-width: none; width: 760px; } h1 { font-size: 24px; } }
"""
