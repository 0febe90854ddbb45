"""The style sheet of the report's page: no font, picture or script from elsewhere; light or dark as the reader's."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f6f7; --ink: #18181b; --pale: #5f5f68; --line: #dedee3; --strong: #b9b9c2;
  --good: #0a6b4b; --good-back: #e2f4ec; --bad: #9c3d00; --bad-back: #fdebdf; --even-back: #ececef;
  --warn-line: #c98a00; --warn-back: #fff6de;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #141417; --card: #1e1e23; --ink: #ececf0; --pale: #a3a3ae; --line: #33333b; --strong: #55555f;
    --good: #6fd6ab; --good-back: #12352a; --bad: #f5a873; --bad-back: #40230f; --even-back: #2c2c33;
    --warn-line: #d9a22b; --warn-back: #33290d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 80rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.pale, td small, th small, .legend, figcaption { color: var(--pale); }
.warnings { margin: 1.25rem 0; padding: .6rem 1rem; border-left: .3rem solid var(--warn-line); border-radius: .3rem;
  background: var(--warn-back); }
.warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
.headlines { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  margin: 1.25rem 0; padding: 0; list-style: none; }
.headlines li { padding: .8rem 1rem 1rem;
  border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.headlines b { display: block; font-size: 1.05rem; }
.verdict { display: inline-block; padding: .05rem .5rem; border-radius: .75rem; font-size: .85rem;
  background: var(--even-back); color: var(--ink); }
.headlines .verdict { margin-top: .5rem; }
.verdict.method { background: var(--good-back); color: var(--good); }
.verdict.fewer { background: var(--bad-back); color: var(--bad); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
figure { margin: 0; }
figcaption { margin-top: .4rem; font-size: .85rem; }
.plot { background: #ffffff; }
.plot img { display: block; width: 100%; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .65rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom-color: var(--strong); font-weight: 600; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td.words, thead th.words { text-align: left; }
tbody th { font-weight: 600; white-space: normal; min-width: 10.5rem; max-width: 14rem; }
.numbers th:first-child { position: sticky; left: 0; background: var(--paper); }
td small, th small { display: block; font-size: .8rem; font-weight: 400; }
tr.fewer th { font-weight: 400; }
tr.first > * { border-top: 1px solid var(--strong); }
.legend { font-size: .85rem; margin: .6rem 0 0; padding: 0; list-style: none; }
.legend b { color: var(--ink); font-weight: 600; }
.grid { width: fit-content; max-width: 100%; }
.grid table { width: auto; }
.grid th, .grid td { border: 0; padding: .3rem .5rem; text-align: left; vertical-align: bottom; }
.grid thead th { white-space: normal; border-bottom: 1px solid var(--strong); }
.grid th.prompt { max-width: none; padding: .7rem .5rem 0; font-weight: 400; }
.grid th.prompt span { position: sticky; left: .5rem; display: inline-block; max-width: min(70rem, 100vw - 4.5rem);
  white-space: normal; }
.grid img { display: block; border-radius: .15rem; outline: 1px solid var(--line); }
img.pixels { image-rendering: pixelated; }
details { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .75rem; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1rem; font-size: .85rem; }
dt { color: var(--pale); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .85rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  body { padding: 1.25rem .75rem 3rem; }
  h1 { font-size: 1.3rem; }
  .plot img { width: auto; max-width: none; height: 19rem; }
  th, td { padding: .4rem .5rem; }
  tbody th { min-width: 8.5rem; max-width: 8.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
"""
