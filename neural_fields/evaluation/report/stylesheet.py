"""The look of the page: one style sheet for phones and desks, light and dark; nothing is loaded from elsewhere."""

from __future__ import annotations

STYLE = """
:root { --ink: #1c2126; --soft: #59636e; --paper: #fbfbf9; --card: #ffffff; --line: #d9dcd6; --accent: #1f6f8b;
  --good: #2f8f4e; --care: #a86e00; --bad: #c0362c; --good-bg: #e6f4ea; --care-bg: #fdf3dc; --bad-bg: #fbe6e3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b1; --paper: #14171a; --card: #1d2125; --line: #353b41; --accent: #6fc3df;
    --good: #5cc47f; --care: #e8b54a; --bad: #ff7b6e; --good-bg: #15301f; --care-bg: #352a10; --bad-bg: #3a1a17; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.2rem; margin: 0 0 1rem; font-weight: 600; overflow-wrap: anywhere; }
h1 small { display: block; font-weight: 400; color: var(--soft); font-size: .85rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .3rem 0 .6rem; }
.soft, figcaption, .axis { color: var(--soft); font-size: .85rem; }
.verdict { border-radius: 12px; padding: 1rem 1.1rem; border-left: 6px solid; }
.verdict strong { display: block; font-size: 1.45rem; line-height: 1.25; margin-bottom: .4rem; }
.verdict.good { background: var(--good-bg); border-color: var(--good); }
.verdict.care { background: var(--care-bg); border-color: var(--care); }
.verdict.bad { background: var(--bad-bg); border-color: var(--bad); }
ul.reasons { list-style: none; margin: 0; padding: 0; }
ul.reasons > li { margin: .55rem 0; padding-left: 1.5rem; position: relative; }
ul.reasons > li::before { position: absolute; left: 0; font-weight: 700; }
li.good::before { content: "\\2713"; color: var(--good); }
li.care::before { content: "!"; color: var(--care); left: .3rem !important; }
li.bad::before { content: "\\2715"; color: var(--bad); }
pre { margin: .3rem 0; padding: .5rem .65rem; border-radius: 8px; background: var(--card);
  border: 1px solid var(--line); font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .55rem .75rem; }
.figures b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: .82rem; }
.strip { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem; }
.strip > div { min-width: 36rem; }
.plot { position: relative; height: 9rem; margin-left: 2.6rem; }
.plot svg { width: 100%; height: 100%; display: block; }
.plot .axis { position: absolute; right: calc(100% + .35rem); transform: translateY(-50%); white-space: nowrap; }
.thumbs { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 2px; margin-left: 2.6rem; }
.thumbs img { width: 100%; display: block; border-radius: 3px; }
.thumbs span { display: block; text-align: center; }
.bar { fill: var(--accent); } .bar.low { fill: var(--care); } .bar.worst { fill: var(--bad); }
.grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.three, .maps { display: grid; gap: .6rem; }
.three { grid-template-columns: repeat(3, 1fr); }
.maps { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
@media (max-width: 34rem) { .three { grid-template-columns: 1fr 1fr; }
  .three figure:last-child { grid-column: span 2; } }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 8px; border: 1px solid var(--line); }
figcaption { margin: .25rem 0 .5rem; }
figcaption b { color: var(--ink); }
.scale { height: .6rem; border-radius: 3px; margin-top: .3rem; }
.ends { display: flex; justify-content: space-between; font-size: .78rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin: 0 .25rem 0 .5rem;
  vertical-align: -1px; }
.main img { width: auto; max-width: 100%; max-height: 34rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
"""
