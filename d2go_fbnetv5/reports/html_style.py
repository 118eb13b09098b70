"""The style sheet of ``report.html``: one column, light and dark, readable on a phone."""

STYLE = """
:root {
  --ground: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #59616d; --line: #e3e6ea;
  --accent: #3d7dca; --good: #23806a; --bad: #b8492a; --heat: 61 125 202;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12151a; --card: #1b1f26; --ink: #e8ebf0; --soft: #9aa4b2; --line: #2c323c;
    --accent: #6ea8ea; --good: #58c7a8; --bad: #ee8a6a; --heat: 90 150 225;
  }
  .figure img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 28px; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 10px; }
h2 { font-size: 1.12rem; letter-spacing: -0.01em; margin: 0 0 14px; }
h3 { font-size: 0.9rem; font-weight: 600; margin: 0 0 6px; }
.kicker {
  margin: 0 0 6px; color: var(--accent); font-size: 0.78rem; font-weight: 650;
  letter-spacing: 0.09em; text-transform: uppercase;
}
.lead { margin: 0 0 24px; color: var(--soft); font-size: 1.05rem; max-width: 44em; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px 18px; margin: 0 0 28px; }
.facts dt { color: var(--soft); font-size: 0.78rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px; margin: 0 0 18px;
}
.note { margin: 12px 0 0; color: var(--soft); font-size: 0.86rem; max-width: 60em; }
.figure { overflow-x: auto; }
.figure img { display: block; width: 100%; min-width: 600px; height: auto; }
.figure.small img { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
small { color: var(--soft); font-size: 0.85em; }
.results th {
  color: var(--soft); font-size: 0.78rem; font-weight: 500; text-align: right;
  padding: 0 0 8px 16px; vertical-align: bottom;
}
.results td { text-align: right; padding: 10px 0 10px 16px; border-top: 1px solid var(--line); white-space: nowrap; }
.results th:first-child, .results td:first-child { text-align: left; padding-left: 0; }
.metric { font-weight: 650; }
.metric.good { color: var(--good); }
.metric.bad { color: var(--bad); }
.bar {
  display: inline-block; width: 64px; height: 7px; border-radius: 4px; margin-right: 8px; vertical-align: 1px;
  background: linear-gradient(var(--accent), var(--accent)) 0 / calc(var(--share) * 100%) 100% no-repeat var(--line);
}
.heats { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 22px; }
.heat { table-layout: fixed; font-size: 0.78rem; border-collapse: separate; border-spacing: 3px; }
.heat caption { text-align: left; font-weight: 650; font-size: 0.95rem; padding: 0 0 4px; }
.heat th { color: var(--soft); font-weight: 500; text-align: center; white-space: nowrap; }
.heat th:first-child { width: 4.6em; text-align: left; }
.heat td {
  text-align: center; padding: 5px 0; border-radius: 5px; color: var(--soft);
  background: rgb(var(--heat) / calc(var(--p) * 0.75));
}
.heat td.kept { color: var(--ink); font-weight: 650; box-shadow: 0 0 0 1.5px var(--accent); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 20px; }
.curves + table { margin-top: 18px; }
.curve text { font-size: 12px; }
.metrics td { padding: 6px 16px 6px 0; border-top: 1px solid var(--line); vertical-align: top; font-size: 0.88rem; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); font-size: 0.9rem; }
pre { overflow-x: auto; font: 0.8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 10px 0 0; }
footer { color: var(--soft); font-size: 0.8rem; text-align: center; padding-top: 6px; }
@media (max-width: 680px) {
  main { padding: 26px 12px 20px; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  section { padding: 16px 14px; }
  .results thead { display: none; }
  .results tr { display: block; padding: 8px 0; border-top: 1px solid var(--line); }
  .results tr:first-child { border-top: 0; }
  .results td { display: flex; align-items: baseline; border: 0; padding: 3px 0; gap: 12px; }
  .results td::before { content: attr(data-label); color: var(--soft); font-size: 0.85rem; margin-right: auto; }
  .results td:first-child::before { content: none; }
  .results td:first-child { font-size: 1.05rem; }
  .heats, .curves { grid-template-columns: 1fr; }
  .curve text { font-size: 23px; } /* of a picture that is half as wide as on a desk */
  .curve a circle { r: 13px; } /* for fingers */
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
