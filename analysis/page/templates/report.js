"use strict";
const plots = [];
const read = id => JSON.parse(document.getElementById(id).textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
let data = read("data"), drawn = {}, printing = false;
const root = () => getComputedStyle(document.body);

// The figures are made for a light page. For a dark one, their colours are exchanged as `data.dark` says.
function coloured(value, key = "") {
  if (typeof value === "string" && /color$/i.test(key) && dark.matches && !printing && Object.hasOwn(data.dark, value)) {
    return data.dark[value];
  }
  if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(item => coloured(item));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, of]) => [name, coloured(of, name)]));
}

const saveSvg = {name: "Download plot as SVG", icon: {width: 24, height: 24, path: "M12 16 6 10h4V3h4v7h4zM4 19h16v2H4z"},
  click: plot => Plotly.downloadImage(plot, {format: "svg", filename: plot.id})};

// Wide plots take a second each on a large study: they are drawn one after another, when the page can be read.
let waiting = [];
function drawNext() {
  if (!waiting.length) return;
  drawOne(waiting.shift());
  setTimeout(drawNext, 50);
}

function draw(figures, all = false) {
  drawn = figures;
  waiting = [];
  hoverTexts = [];  // the live page has new networks
  for (const id of Object.keys(figures)) {
    const plot = document.getElementById(id);
    if (!plot) continue;
    if (all || plots.includes(plot) || !plot.classList.contains("wide")) drawOne(plot);
    else {
      plot.style.height = `${figures[id].layout.height}px`;
      waiting.push(plot);
    }
  }
  if (brushing) brushed();
  setTimeout(drawNext, 50);
}

function drawOne(plot) {
  const id = plot.id, figure = drawn[id], known = plots.includes(plot);
  figure.layout.uirevision = "kept";  // a redrawn plot keeps its zoom and its hidden traces
  for (const trace of figure.data) if (trace.meta === "networks") {
    trace.text = trace.customdata.map(row => hoverText(row));
  }
  const {data: traces, layout} = coloured({data: figure.data, layout: figure.layout});
  if (layout.legend?.y < 0 && plot.clientWidth < 600) layout.legend.y = -0.26;  // it has several lines there
  Plotly.react(plot, traces, layout, {responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
    modeBarButtonsToAdd: [saveSvg], plotlyServerURL: "", toImageButtonOptions: {filename: id, scale: 3}});
  if (known) return;
  const rowOf = event => event.points?.[0]?.customdata;  // parallel coordinates have no points
  plot.on("plotly_hover", event => { if (rowOf(event) >= 0) highlight(trialOf(rowOf(event))); });
  plot.on("plotly_unhover", () => highlight(null));
  plot.on("plotly_click", event => { if (rowOf(event) >= 0) show(rowOf(event)); });
  if (id === "parameters") plot.on("plotly_restyle", brushed);
  plots.push(plot);
}

// data.networks.columns: name -> [distinct texts, index of the text of each network]
const cell = (name, row) => { const [texts, at] = data.networks.columns[name]; return texts[at[row]]; };
const trialOf = row => cell("trial", row);
const stepOf = row => Number(cell("step", row));
const escaped = text => text.replace(/[&<>]/g, sign => `&#${sign.codePointAt(0)};`);
const known = row => Object.keys(data.networks.columns)
  .filter(name => name !== "trial" && name !== "step" && cell(name, row) !== "").map(name => [name, cell(name, row)]);

let hoverTexts = [];  // of each network; they are made once, because several plots show the same networks
function hoverText(row) {
  if (hoverTexts[row] !== undefined) return hoverTexts[row];
  const lines = known(row).filter(([name]) => name !== "checkpoint").map(line => line.map(escaped).join(": "));
  return hoverTexts[row] = [`<b>trial ${escaped(trialOf(row))}, step ${stepOf(row)}</b>`, ...lines].join("<br>");
}

// Highlight all networks of a trial (dense and prune steps) in every plot; null clears the highlight.
let shown = null;
function highlight(trial) {
  if (trial === shown) return;
  shown = trial;
  for (const plot of plots) {
    const last = plot.data.length - 1, points = [];
    if (plot.data[last]?.name !== "trial") continue;
    for (const trace of plot.data) if (trace.meta === "networks") trace.customdata.forEach((row, i) => {
      if (trialOf(row) === trial) points.push([stepOf(row), trace.x[i], trace.y[i]]);
    });
    points.sort((a, b) => a[0] - b[0]);
    Plotly.restyle(plot, {x: [points.map(p => p[1])], y: [points.map(p => p[2])]}, [last]);
  }
}

let brushing = false;
// The networks inside all ranges that are brushed in the plot of the parameters stay; the others turn pale elsewhere.
function brushed() {
  const brush = document.getElementById("parameters"), trace = brush?.data?.[0];
  if (!trace) return;
  const inside = (value, range) => (Array.isArray(range[0]) ? range : [range]).some(r => value >= r[0] && value <= r[1]);
  const limits = trace.dimensions.filter(d => d.constraintrange);
  brushing = limits.length > 0;
  const chosen = new Set(trace.customdata.filter((_, i) => limits.every(d => inside(d.values[i], d.constraintrange))));
  const drawnThere = new Set(trace.customdata);  // of many networks, a part: nothing is known of the others
  for (const plot of plots) {
    const indices = [], selected = [];
    plot.data.forEach((other, index) => {
      if (other.meta !== "networks") return;
      indices.push(index);
      selected.push(limits.length ? other.customdata.flatMap((row, i) => chosen.has(row) || !drawnThere.has(row) ? [i] : []) : null);
    });
    if (indices.length) Plotly.restyle(plot, {selectedpoints: selected}, indices);
  }
  const count = document.getElementById("brushed");
  const all = trace.customdata.length;
  if (count) count.textContent = limits.length ? `${chosen.size} of ${all} networks are inside the brushed ranges.` : "";
}

// A click on a header sorts by that column, a second click reverses the order; empty cells stay last.
function sortBy(head, up) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value;
  const order = (a, b) => {
    const p = key(a), q = key(b);
    if (p === "" || q === "") return (p === "") - (q === "");
    const difference = isNaN(p) || isNaN(q) ? p.localeCompare(q) : p - q;
    return up ? difference : -difference;
  };
  body.append(...[...body.rows].sort(order));
}

function saveCsv(table) {
  const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const line = row => [...row.cells].flatMap(c => [quoted(c.textContent), ...Array(c.colSpan - 1).fill("")]).join();
  const blob = new Blob([[...table.rows].map(line).join("\n") + "\n"], {type: "text/csv"});
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: `${table.id}.csv`});
  link.click();
  URL.revokeObjectURL(link.href);
}

function bind() {
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.addEventListener("mouseenter", () => highlight(row.dataset.trial));
    row.addEventListener("mouseleave", () => highlight(null));
    if (row.dataset.step) row.addEventListener("click", () => {
      const rows = [...Array(data.networks?.n ?? 0).keys()];
      const at = rows.findIndex(i => trialOf(i) === row.dataset.trial && stepOf(i) === +row.dataset.step);
      if (at >= 0 && !getSelection().toString()) show(at);
    });
  }
  for (const button of document.querySelectorAll("table.sortable th button")) {
    const head = button.closest("th");
    button.addEventListener("click", () => sortBy(head, head.getAttribute("aria-sort") !== "ascending"));
  }
  for (const table of document.querySelectorAll(".scroll > table[id]")) {
    const saving = Object.assign(document.createElement("div"), {className: "saving"});
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: "save as csv"});
    button.addEventListener("click", () => saveCsv(table));
    saving.append(button);
    table.parentNode.after(saving);
  }
}

// Show everything that is known about the network of row `row` in the box #network.
function show(row) {
  const box = document.getElementById("network");
  if (!box) return;
  const make = (tag, text, parent) => parent.appendChild(Object.assign(document.createElement(tag), {textContent: text}));
  const trial = trialOf(row), step = stepOf(row);
  box.replaceChildren();
  box.classList.remove("empty");
  make("h3", `Trial ${trial}, step ${step}`, box);
  const parts = make("div", "", box);
  parts.className = "parts";
  const list = make("dl", "", parts);
  for (const [name, text] of known(row)) {
    make("dt", name, list);
    make("dd", text, list);
  }
  const figures = data.networks.details;
  curves(trial, make("div", "", parts));
  accuracies(figures.accuracies, row, make("div", "", parts));
  confusion(figures.confusion?.[`${trial}/${step}`], figures.labels, make("div", "", parts));
  box.scrollIntoView({behavior: "smooth", block: "nearest"});
}

function small(element, name, traces, layout) {
  element.id = name;
  element.className = "plot";
  const ink = root().getPropertyValue("--ink"), rule = root().getPropertyValue("--rule");
  const axis = {gridcolor: rule, linecolor: ink, zeroline: false, automargin: true};
  Plotly.newPlot(element, traces, {...layout, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis},
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: {color: ink, size: 12, family: root().fontFamily},
    margin: {l: 48, r: 10, t: 44, b: 42}, showlegend: false, modebar: {bgcolor: "transparent", color: rule}},
    {responsive: true, displaylogo: false, displayModeBar: "hover", plotlyServerURL: "",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"], modeBarButtonsToAdd: [saveSvg]});
}

// Learning curve: validation accuracy after each epoch; a gap separates dense training and prune steps.
function curves(trial, element) {
  const curve = data.networks.details.curves?.[trial];
  if (!curve) return element.replaceWith(note("No learning curve: this report has no results.csv of the trial."));
  const [starts, values] = curve;
  const lines = starts.slice(1).map((at, i) => ({type: "line", x0: at + .5, x1: at + .5, y0: 0, y1: 1, yref: "paper",
    line: {color: root().getPropertyValue("--soft"), width: 1, dash: "dot"}}));
  small(element, "network-curve", [{x: values.map((_, i) => i + 1), y: values.map(v => v === null ? null : v / 10),
    mode: "lines+markers", marker: {size: 4}, line: {color: "#0072b2"}, hovertemplate: "epoch %{x}: %{y:.1f} %<extra></extra>"}],
    {title: {text: "Learning curve", x: 0, xanchor: "left", font: {size: 13}}, shapes: lines, xaxis: {title: {text: "epoch (dotted: a prune step)"}},
      yaxis: {title: {text: "validation accuracy (%)"}}});
}

function accuracies(table, row, element) {
  if (!table) return element.remove();
  const values = table.rows[row].map(v => v === null ? null : v / 10);
  small(element, "network-accuracy", [{type: "bar", orientation: "h", y: table.names.map(escaped), x: values,
    marker: {color: "#5b9fc9"}, hovertemplate: "%{y}: %{x:.1f} %<extra></extra>"}],
    {title: {text: "By scene and device", x: 0, xanchor: "left", font: {size: 13}}, yaxis: {autorange: "reversed", dtick: 1, tickfont: {size: 10}},
      xaxis: {title: {text: "validation accuracy (%)"}, range: [0, 100]}});
  element.style.height = `${80 + 17 * table.names.length}px`;
  Plotly.Plots.resize(element);
}

function confusion(counts, labels, element) {
  if (!counts) return element.replaceWith(note("Confusion matrices are stored for the front only."));
  const shares = counts.map(line => { const n = line.reduce((a, b) => a + b, 0); return line.map(v => n ? 100 * v / n : null); });
  const paper = root().getPropertyValue("--paper"), heat = root().getPropertyValue("--heat");
  const names = labels.map(escaped);
  small(element, "network-confusion", [{type: "heatmap", x: names, y: names, z: shares, customdata: counts, zmin: 0,
    zmax: 100, colorscale: [[0, paper], [1, heat]], showscale: false,
    hovertemplate: "%{y} taken for %{x}: %{z:.0f} % (%{customdata} clips)<extra></extra>"}],
    {title: {text: "Confusion matrix: share of each scene (%)", x: 0, xanchor: "left", font: {size: 13}}, yaxis: {autorange: "reversed",
      tickfont: {size: 10}, title: {text: "scene"}}, xaxis: {tickfont: {size: 10}, tickangle: -60, title: {text: "prediction"}}});
  element.style.height = "380px";
  Plotly.Plots.resize(element);
}

function note(text) {
  return Object.assign(document.createElement("p"), {className: "note", textContent: text});
}

function redraw(all = false) {
  draw(drawn, all);
  const box = document.getElementById("network");
  if (box) for (const plot of box.querySelectorAll(".plot")) Plotly.relayout(plot, {"font.color": root().getPropertyValue("--ink")});
}

draw(read("figures"));
bind();
dark.addEventListener("change", () => redraw());
addEventListener("beforeprint", () => { printing = true; redraw(true); });
addEventListener("afterprint", () => { printing = false; redraw(); });
