"""The colours and the CSS of pages and pictures."""

NUM_COLOURS = 6  # series take the classes s0 to s5 in turn
LIGHT = (
    "--text:#1b1b1f;--back:#fff;--soft:#667;--rule:#ccd;"
    "--c0:#1f5fbf;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;--c4:#a16207;--c5:#0e7490"
)
DARK = (
    "--text:#e8e8ee;--back:#15161a;--soft:#9aa;--rule:#3a3c46;"
    "--c0:#7fb0ff;--c1:#ff9a6b;--c2:#6fd08c;--c3:#cf9bff;--c4:#e5c04f;--c5:#5fd0e6"
)
"""CSS variables of the two colour schemes."""

FIGURE_STYLE = (
    ".grid{stroke:var(--rule);stroke-width:.7}.tick,.label{fill:var(--soft);font-size:14px}"
    ".line{fill:none;stroke-width:1.8}.dashed{stroke-dasharray:6 4}.error{stroke-width:1.2}"
    ".cell{fill:var(--c0)}.mark{fill:var(--c1)}.chosen{fill:var(--c1);stroke:var(--back)}"
) + "".join(f".s{i}{{stroke:var(--c{i})}}.dot.s{i}{{fill:var(--c{i});stroke:none}}" for i in range(NUM_COLOURS))
"""CSS of the parts of a picture."""

PAGE_STYLE = (
    f"\n:root{{color-scheme:light dark;{LIGHT}}}\n@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}\n{FIGURE_STYLE}"
    + """
body{margin:0 auto;max-width:72rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--text);
background:var(--back)}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--rule)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;margin:.75rem 0;
font-variant-numeric:tabular-nums}
th,td{padding:.25rem .45rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}
td{white-space:nowrap}td.long,th{white-space:pre-wrap}td.long{overflow-wrap:anywhere}th{vertical-align:bottom}
tr>:first-child:not(.long){position:sticky;left:0;background:var(--back)}
th{cursor:pointer}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr))}
.card{border:1px solid var(--rule);border-radius:6px;padding:0 1rem .5rem}
h3{font-size:1.05rem;margin:.75rem 0 .5rem}
h4{font-size:.8rem;margin:.5rem 0 0;color:var(--soft);text-transform:uppercase}
.card ul{margin:.1rem 0;padding-left:1.1rem;font-size:.9rem}.card p{font-weight:600;margin:.6rem 0 .25rem}
figure{margin:1rem 0}
.figures{display:grid;gap:0 1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr))}
svg{width:100%;height:auto;display:block}
figcaption{color:var(--soft);font-size:.875rem}
@media(max-width:40rem){.tick,.label{font-size:18px}}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.25rem 0;padding:0;font-size:.875rem}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px}
@page{size:A4 landscape;margin:12mm}
@media print{body{max-width:none;padding:0}.wide{overflow:visible}table{font-size:.65rem}
th,td{padding:.2rem .4rem}td:not(.long){white-space:normal}td:first-child:not(.long){white-space:nowrap}
figure,tr,.card{break-inside:avoid}
h2{break-after:avoid}}
"""
    + f"@media print{{:root{{{LIGHT};--text:#000;--soft:#444;--rule:#bbb}}}}\n"
    + "".join(f".key.s{i}{{background:var(--c{i})}}" for i in range(NUM_COLOURS))
)
"""CSS of a page: light, dark, narrow and printed."""
