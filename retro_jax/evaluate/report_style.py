"""The report's style sheet: light and dark by the reader's setting, from phone to desktop."""

STYLE = """
:root { --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --card: #f6f8fa; --good: #1a7f4b; --bad: #b3541e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --ink: #e6e9ee; --soft: #a0a8b3; --line: #343b45; --card: #1c2128; --good: #4cc38a; --bad: #f0935a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.2rem) 4rem; max-width: 1180px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: .4rem 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; max-width: 76ch; }
.soft, figcaption, .caption { color: var(--soft); font-size: .88rem; }
.verdict { border-left: 5px solid var(--bad); background: var(--card); padding: .8rem 1rem; margin: 1rem 0; font-size: 1.08rem; }
.verdict.seen { border-color: var(--good); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; font-size: .93rem; }
.caption { max-width: 46rem; margin: 1rem 0 .3rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 14rem; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
th.control, td.control { color: var(--soft); font-weight: 400; }
tr.all td { border-top: 2px solid var(--line); }
td small { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
svg { width: 100%; height: auto; display: block; }
.passage { border: 1px solid var(--line); border-radius: 8px; margin: 1.2rem 0; overflow: hidden; }
.passage > header { background: var(--card); padding: .6rem .9rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.chunk { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); border-bottom: 1px solid var(--line); }
.chunk:last-child { border-bottom: 0; }
.chunk > div { padding: .6rem .9rem; }
.chunk > div + div { border-left: 1px solid var(--line); background: var(--card); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .93rem; line-height: 1.6; tab-size: 4; }
.text span { border-radius: 2px; }
.legend span { padding: 0 .35em; border-radius: 2px; }
.hurt { text-decoration: underline dotted; text-underline-offset: 3px; }
.neighbor { margin-bottom: .8rem; }
.neighbor .text { font-size: .86rem; line-height: 1.45; }
.neighbor .more { border-left: 3px solid var(--soft); padding-left: .35em; margin-left: .1em; }
mark { background: none; color: inherit; font-weight: 700; text-decoration: underline; text-underline-offset: 2px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 0 2.4rem; align-items: start; }
.columns > div { min-width: 0; overflow-x: auto; }
@media (max-width: 700px) {
  .chunk { grid-template-columns: minmax(0, 1fr); }
  .chunk > div + div { border-left: 0; border-top: 1px dashed var(--line); }
  th, td { padding: .28rem .45rem; }
}
"""
