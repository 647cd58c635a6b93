"use strict";
// Draws the figures of the report from the embedded data. Names come from folders: `text` makes them harmless.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const dark = matchMedia("(prefers-color-scheme: dark)");
const text = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const fixed = (v, n = 2) => v === null || v === undefined ? "–" : v.toFixed(n);
const COUNTING = {paper: "paper's counting", signed: "with the sign bit", model: "whole model"};
const CONFIG = {displaylogo: false, responsive: true, displayModeBar: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

function colours() {
  return dark.matches
    ? {ink: "#e6e9ed", quiet: "#98a2ae", line: "#30363e", paper: "#14171b", base: "#c3cad2",
       list: ["#56b4e9", "#f08a4b", "#3fc79a", "#d99cc0", "#f0e442", "#e69f00"]}
    : {ink: "#1b1f24", quiet: "#66707c", line: "#e4e7eb", paper: "#ffffff", base: "#3d444d",
       list: ["#0072b2", "#d55e00", "#009e73", "#b0568c", "#e69f00", "#56b4e9"]};
}

function layout(more) {
  const c = colours();
  const axis = {gridcolor: c.line, linecolor: c.line, zeroline: false, ticks: "outside", tickcolor: c.line,
    automargin: true, title: {standoff: 8}};
  return {font: {family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 12.5, color: c.ink},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: c.quiet, activecolor: c.ink},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 56, r: 16, t: 16, b: 44},
    hoverlabel: {bgcolor: c.paper, bordercolor: c.quiet, font: {color: c.ink}, align: "left"}, ...more,
    xaxis: {...axis, ...more.xaxis, title: {standoff: 8, ...(more.xaxis || {}).title}},
    yaxis: {...axis, ...more.yaxis, title: {standoff: 8, ...(more.yaxis || {}).title}}};
}

// ---- the front -------------------------------------------------------------------------------------------------
const views = data.groups.map((group) => ({counting: "paper", axis: "c", published: true, paths: pathsFit(group)}));
let chosen = 0;  // place of the run shown in "One run"

function pathsFit(group) {
  return group.rows.reduce((n, row) => n + row.runs.filter((i) => data.runs[i].adjustments).length, 0) <= 2;
}
function at(point, view, counting = view.counting) {  // x of a row or run
  if (view.axis === "bits" || view.axis === "gb") return point[view.axis];
  return point.x && point.x[counting] ? point.x[counting][view.axis] : null;
}
function ends(point, view) {  // of several seeds, the smallest and the largest x
  if (view.axis === "gb") return [point.gblo, point.gbhi];
  return view.axis === "c" && point.x ? [point.x[view.counting].lo, point.x[view.counting].hi] : [null, null];
}
const BASELINE_MARKERS = {solid: "square", dash: "triangle-down", dot: "x", dashdot: "cross"};  // of baselines, by their dash
function curveStyles(group) {  // baselines are dark, and differ by dash and marker
  const c = colours(), result = new Map(), taken = {true: 0, false: 0}, kinds = ["solid", "dash", "dot", "dashdot"];
  for (const row of group.rows) if (row.method !== "float" && !result.has(row.curve)) {
    const n = taken[row.baseline]++;
    result.set(row.curve, row.baseline ? {colour: c.base, dash: kinds[n % 4]}
      : {colour: c.list[n % c.list.length], dash: kinds[Math.floor(n / c.list.length) % 4]});
  }
  return result;
}
function pareto(rows, view) {  // what no other beats in size and accuracy, from left to right
  const larger = view.axis === "c", best = [];
  for (const row of [...rows].sort((a, b) => (larger ? at(b, view) - at(a, view) : at(a, view) - at(b, view)) || b.acc - a.acc))
    if (!best.length || row.acc > best.at(-1).acc) best.push(row);
  return larger ? best.reverse() : best;
}
function hoverRow(row) {
  const x = row.x;
  return `<b>${text(row.label)}</b><br>test ${fixed(row.acc)}${row.sd === null ? "" : " ± " + fixed(row.sd)} %${row.lo === null ? "" : ` (${fixed(row.lo)} to ${fixed(row.hi)})`}` +
    (x ? Object.keys(COUNTING).map((k) => `<br>${fixed(x[k].c)}× ${COUNTING[k]}, ${fixed(x[k].kB, 1)} kB`).join("") : "") +
    (row.bits === null ? "" : `<br>${fixed(row.bits)} bits per weight`) + (row.gb === null ? "" : `<br>${row.gb}e9 bit operations`) +
    `<br>${row.n} of ${row.asked} ${row.asked === 1 ? "run" : "seeds"} done<br>` +
    row.runs.slice(0, 4).map((i) => text(data.runs[i].name)).join("<br>") + (row.runs.length > 4 ? "<br>…" : "");
}
function frontTraces(group, view) {
  const c = colours(), styles = curveStyles(group), traces = [], labels = [], graded = group.graded;
  const drawn = group.rows.filter((row) => row.acc !== null && at(row, view)), best = pareto(drawn, view);
  if (drawn.length > 2 && best.length > 1) traces.push({x: best.map((r) => at(r, view)), y: best.map((r) => r.acc), mode: "lines",
    line: {color: c.list[0], width: 5, shape: view.axis === "c" ? "vh" : "hv"}, opacity: .28, name: "Pareto front", hoverinfo: "skip"});
  if (view.paths && view.axis !== "gb") pathTraces(group, view, styles, traces);
  for (const [curve, {colour: tone, dash}] of styles) {
    const along = (row) => row.at === null ? at(row, view) : row.at;  // a knob that is no number (a scheme): by size
    const rows = drawn.filter((row) => row.curve === curve).sort((a, b) => along(a) - along(b));
    if (!rows.length) continue;
    const base = rows[0].baseline, shade = graded && rows[0].knob === graded.key && !base;
    const seeds = rows.filter((row) => row.n > 1).flatMap((row) => row.runs).map((i) => data.runs[i]).filter((r) => r.test !== null && r.state === "done");
    if (seeds.length && !shade) traces.push({x: seeds.map((r) => at(r, view)), y: seeds.map((r) => r.test), mode: "markers", showlegend: false,
      marker: {color: tone, size: 5, opacity: .4}, hovertext: seeds.map((r) => `<b>${text(r.label)}</b>, seed ${r.seed}<br>${text(r.name)}<br>test ${fixed(r.test)} %`),
      hoverinfo: "text", customdata: seeds.map((r) => data.runs.indexOf(r))});
    const bar = (values, low, high) => ({type: "data", symmetric: false, color: tone, thickness: shade ? .7 : 1.2, width: shade ? 0 : 3,
      array: values.map((v, k) => high[k] === null ? 0 : Math.max(high[k] - v, 0)), arrayminus: values.map((v, k) => low[k] === null ? 0 : Math.max(v - low[k], 0)),
      visible: low.some((v) => v !== null)});
    const x = rows.map((r) => at(r, view)), y = rows.map((r) => r.acc);
    traces.push({x, y, name: text(curve) + (base ? ": a line to beat" : ""), mode: rows[0].knobless ? "markers" : "lines+markers",
      line: {color: tone, width: base ? 2.5 : shade ? .8 : 1.6, dash},
      marker: {size: shade ? 8 : 9, symbol: base ? BASELINE_MARKERS[dash] : rows[0].knobless ? "triangle-up" : "circle", ...(shade ? gradedMarker(rows, graded) : {color: tone})},
      error_y: bar(y, rows.map((r) => r.lo), rows.map((r) => r.hi)), error_x: bar(x, rows.map((r) => ends(r, view)[0]), rows.map((r) => ends(r, view)[1])),
      hovertext: rows.map(hoverRow), hoverinfo: "text", customdata: rows.map((r) => r.runs[0])});
    for (const row of rows) labels.push({x: at(row, view), y: row.acc, label: shade ? "" : row.short, colour: tone});
  }
  const open = group.rows.flatMap((row) => row.runs.map((i) => [row, data.runs[i], i]))
    .filter(([row, run]) => run.state !== "done" && run.valacc !== null && run.method !== "float" && at(run, view));
  if (open.length) traces.push({x: open.map(([, r]) => at(r, view)), y: open.map(([, r]) => r.valacc), mode: "markers",
    name: "unfinished: newest validation accuracy", marker: {symbol: "circle-open", size: 10, color: open.map(([row]) => styles.get(row.curve).colour), line: {width: 2}},
    hovertext: open.map(([, r]) => `<b>${text(r.label)}</b>, ${r.state}<br>${text(r.name)}<br>validation ${fixed(r.valacc)} % (${text(r.val)})`),
    hoverinfo: "text", customdata: open.map(([, , i]) => i)});
  if (view.published && view.counting === "paper") publishedTraces(group, view, traces, labels);
  return [traces, labels];
}
function gradedMarker(rows, graded) {  // by the logarithm of the knob, which the bar beside the picture explains
  const logs = [Math.log10(graded.from), Math.log10(graded.to)], ticks = [...Array(5).keys()].map((k) => logs[0] + k * (logs[1] - logs[0]) / 4);
  return {color: rows.map((r) => Math.log10(r.at)), line: {width: .7, color: colours().quiet}, cmin: logs[0], cmax: logs[1], colorscale: "Viridis", showscale: true,
    colorbar: {title: {text: text(graded.name), side: "top"}, thickness: 12, len: .8, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map((t) => (10 ** t).toPrecision(2)), tickfont: {size: 11}}};
}
function pathTraces(group, view, styles, traces) {
  const many = group.rows.reduce((n, row) => n + row.runs.length, 0) > 20;
  let first = true;
  for (const row of group.rows) for (const i of row.runs) {
    const run = data.runs[i], adjusted = run.adjustments;
    if (!adjusted || !adjusted.x) continue;
    const x = adjusted.epoch.map((_, k) => view.axis === "bits" ? 32 / adjusted.x.paper.c[k] : adjusted.x[view.counting][view.axis][k]);
    const shown = x.map((_, k) => k).filter((k) => x[k] !== null && adjusted.after[k] !== null);
    traces.push({x: shown.map((k) => x[k]), y: shown.map((k) => adjusted.after[k]), mode: "lines+markers", legendgroup: "paths", showlegend: first,
      name: `adjustments: ${run.val === "test set" ? "test-set" : "validation"} accuracy before fine-tuning`, opacity: i === chosen ? 1 : many ? .22 : .55,
      line: {color: styles.get(row.curve).colour, width: 1.1, dash: "dot"}, marker: {color: styles.get(row.curve).colour, size: 4.5, symbol: "diamond"},
      hovertext: shown.map((k) => `<b>${text(run.label)}</b>, seed ${run.seed}<br>adjustment after bits epoch ${adjusted.epoch[k] + 1}<br>` +
        `${run.val === "test set" ? "test set" : "validation"} ${fixed(adjusted.before[k])} → ${fixed(adjusted.after[k])} %<br>` +
        `${adjusted.saved[k].toLocaleString("en")} bits saved, ${adjusted.touched[k]} layers changed`), hoverinfo: "text", customdata: shown.map(() => i)});
    if (shown.length) first = false;
  }
}
function publishedTraces(group, view, traces, labels) {
  const c = colours();
  const read = (p) => !p.from.startsWith("recalled");
  for (const [known, name, symbol] of [[true, "published: read in a secondary summary (in part)", "diamond-tall"], [false, "published: recalled, unverified", "diamond-tall-open"]]) {
    const points = group.published.filter((p) => read(p) === known);
    if (!points.length || view.axis === "kB" || view.axis === "gb") continue;
    const x = points.map((p) => view.axis === "bits" ? 32 / p.c : p.c);
    traces.push({x, y: points.map((p) => p.acc), mode: "markers", name, marker: {symbol, size: 9, color: c.quiet, line: {width: 1.2, color: c.quiet}},
      hovertext: points.map((p) => `<b>${text(p.name)}</b>, published<br>${p.acc} % at ${p.c}×${p.act === null ? "" : `, ${p.act === 32 ? "float" : p.act + "-bit"} activations`}` +
        `${p.before === null ? "" : `<br>${p.before} % before fine-tuning`}<br><i>${text(p.from)}</i>`), hoverinfo: "text"});
    points.forEach((p, k) => labels.push({x: x[k], y: p.acc, label: p.name, colour: c.quiet, small: true}));
  }
}
function window_(values, bases, foreign) {  // shows the bulk of the values, the float lines, and what is published nearby
  const v = [...values].sort((a, b) => a - b), q = (p) => v[Math.min(v.length - 1, Math.floor(p * v.length))];
  const spread = Math.max(v.at(-1) - q(.25), .6);
  let low = v.find((x) => x >= q(.25) - 3 * spread), high = v.at(-1);
  const reach = Math.max(high - low, 1.25);
  for (const x of bases) if (x < high + 2 * reach) high = Math.max(high, x);
  for (const x of foreign) if (x > low - 2 * reach && x < high + 2 * reach) [low, high] = [Math.min(low, x), Math.max(high, x)];
  const pad = Math.max((high - low) * .1, .15);
  return [low - pad, high + pad];
}
function span(values, part) {
  const [a, b] = [Math.min(...values), Math.max(...values)], pad = (b - a || Math.abs(a) * .1 || 1) * part;
  return [a - pad, b + pad];
}
function drawFront(section, g) {
  const group = data.groups[g], view = views[g], div = $("[data-figure=front]", section), c = colours();
  const [traces, labels] = frontTraces(group, view);
  const caption = $("figcaption", section);
  if (!traces.length) {
    Plotly.purge(div);
    div.textContent = "No quantized run of this group has an accuracy yet.";
    caption.textContent = "";
    return;
  }
  if (!div.classList.contains("js-plotly-plot")) div.textContent = "";
  const solid = traces.filter((t) => t.hoverinfo !== "skip");
  const own = solid.filter((t) => !String(t.name || "").startsWith("published"));
  const foreign = solid.filter((t) => String(t.name || "").startsWith("published"));
  const xs = [...solid.flatMap((t) => t.x), ...group.rows.flatMap((row) => row.acc !== null && at(row, view) ? ends(row, view).filter((v) => v !== null) : [])];
  const left = Math.min(...xs), right = Math.max(...xs);
  let [low, high] = window_(own.flatMap((t) => t.y), group.float === null ? [] : [group.float], foreign.flatMap((t) => t.y));
  for (const row of group.rows) if (row.lo !== null && row.acc >= low && at(row, view)) [low, high] = [Math.min(low, row.lo - .05), Math.max(high, row.hi + .05)];
  const deep = solid.flatMap((t) => t.y).filter((y) => y < low), broken = deep.length > 0;
  const log = view.axis !== "bits" && right / left > 3;
  const pad = log ? Math.pow(right / left, .06) : (right - left) * .06 || left * .2;
  const range = log ? [Math.log10(left / pad), Math.log10(right * pad)] : [left - pad, right + pad];
  const nice = [.001, .002, .005, .01, .02, .03, .05, .1, .2, .5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 150, 200, 300, 500, 800, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
  let ticks = nice.filter((t) => t >= left / pad && t <= right * pad);
  const most = Math.max(4, div.clientWidth / 75);
  while (log && ticks.length > most) ticks = ticks.filter((_, k) => k % 2 === 0);
  const height = innerWidth < 700 ? 480 : 540;
  const size = view.axis === "bits" ? "mean bits of magnitude per weight" : view.axis === "gb" ? "bit operations of one image, in 1e9" : view.axis === "kB" ? `size in kB, ${COUNTING[view.counting]}` : `times smaller than float, ${COUNTING[view.counting]}`;
  // Far below the others, points stand in a strip of their own under a break of the axis.
  const floor = broken ? .24 : 0, annotations = place(labels, div.clientWidth - 80, (height - 150) * (1 - floor), range, [low, high], log, traces);
  const shapes = [], strip = broken ? span([...deep, Math.min(...deep) - .5, Math.max(...deep) + .5], .25) : [0, 1];
  if (broken) {
    for (const t of [...traces]) {
      const k = t.y.map((_, i) => i).filter((i) => t.y[i] !== null && t.y[i] < low);
      if (!k.length || t.hoverinfo === "skip") continue;
      const some = (values) => Array.isArray(values) ? k.map((i) => values[i]) : values;
      traces.push({...t, x: some(t.x), y: some(t.y), hovertext: some(t.hovertext), customdata: some(t.customdata), mode: "markers", yaxis: "y2", showlegend: false,
        marker: {...t.marker, color: some(t.marker.color), showscale: false}, error_y: {visible: false}, error_x: {visible: false}});
    }
    for (const l of labels) if (l.y < low) annotations.push({x: log ? Math.log10(l.x) : l.x, y: l.y, yref: "y2", text: text(l.label), showarrow: false, yshift: 12, font: {size: 11, color: l.colour}});
    for (const y of [floor - .025, floor]) shapes.push({type: "line", xref: "paper", yref: "paper", x0: -.012, x1: .012, y0: y - .012, y1: y + .012, line: {color: c.quiet, width: 1.4}});
  }
  if (group.float !== null) {
    shapes.push({type: "line", xref: "paper", x0: 0, x1: 1, y0: group.float, y1: group.float, line: {color: c.quiet, width: 1, dash: "dash"}});
    annotations.push({xref: "paper", x: 1, xanchor: "right", y: group.float, yanchor: "bottom", showarrow: false, text: `float ${fixed(group.float)} %`, font: {size: 11.5, color: c.quiet}});
  }
  const drawing = layout({height, hovermode: "closest", annotations, shapes, legend: {orientation: "h", y: -.14, yanchor: "top", x: 0},
    xaxis: {title: {text: size}, anchor: broken ? "y2" : "y", type: log ? "log" : "linear", range, ...(log ? {tickvals: ticks, ticktext: ticks.map((t) => t + (view.axis === "c" ? "×" : ""))} : {ticksuffix: view.axis === "c" ? "×" : ""})},
    yaxis: {title: {text: "accuracy, %"}, range: [low, high], domain: [floor, 1]}});
  if (broken) drawing.yaxis2 = {...drawing.yaxis, title: {text: ""}, range: strip, domain: [0, floor - .025], nticks: 3};
  Plotly.react(div, traces, drawing, CONFIG);
  caption.textContent = "Filled points: test accuracy of finished runs, mean over seeds. Bars: the range of the seeds; for one seed, what the draw of its test images leaves open (95 %). " +
    (view.paths ? "Dotted: every adjustment of a run as a point of its path" + ". " : "") +
    (group.published.length && view.published ? (view.counting !== "paper" || view.axis === "kB" || view.axis === "gb" ? "Published points are known in the paper's counting of compression only, so they are not drawn here." :
      "Published points were not measured here: each says whether it was read in a secondary summary or is recalled, unverified.") : "");
  if (!div.listening) { div.listening = true; div.on("plotly_click", (e) => { const i = e.points[0].customdata; if (Number.isInteger(i)) choose(i); }); }
}
// Labels beside their points, tried on eight sides; one that finds no free place is left to the hover text.
function place(labels, width, height, xr, yr, log, traces) {
  const px = (x) => ((log ? Math.log10(x) : x) - xr[0]) / (xr[1] - xr[0]) * width;
  const py = (y) => (yr[1] - y) / (yr[1] - yr[0]) * height;
  const taken = traces.filter((t) => t.hoverinfo !== "skip").flatMap((t) => t.x.map((x, k) => [px(x) - 5, py(t.y[k]) - 5, px(x) + 5, py(t.y[k]) + 5]));
  for (const t of traces) if (t.error_y) t.x.forEach((x, k) => {
    const reach = (bar) => bar && bar.visible ? [bar.arrayminus[k], bar.array[k]] : [0, 0], [dx, dy] = [reach(t.error_x), reach(t.error_y)];
    taken.push([px(x) - 2, py(t.y[k] + dy[1]), px(x) + 2, py(t.y[k] - dy[0])], [px(x - dx[0]), py(t.y[k]) - 2, px(x + dx[1]), py(t.y[k]) + 2]);
  });
  for (const t of traces) if (String(t.mode).startsWith("lines") && t.hoverinfo !== "skip") for (let k = 1; k < t.x.length; k++) {
    const [x0, y0, x1, y1] = [px(t.x[k - 1]), py(t.y[k - 1]), px(t.x[k]), py(t.y[k])], n = Math.min(60, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 6));
    for (let i = 1; i < n; i++) { const [x, y] = [x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n]; taken.push([x - 1, y - 1, x + 1, y + 1]); }
  }
  const result = [];
  for (const l of labels) {
    const x = px(l.x), y = py(l.y), w = l.label.length * (l.small ? 6 : 6.6) + 4, h = 14;
    if (!l.label || y < 0 || y > height) continue;
    for (const [dx, dy] of [[0, -1], [1, 0], [0, 1], [-1, 0], [1, -1], [1, 1], [-1, -1], [-1, 1]]) {
      const cx = x + dx * (w / 2 + (dy ? 4 : 9)), cy = y + dy * (h / 2 + 8);
      const box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
      if (box[0] < 0 || box[2] > width || box[1] < 0 || box[3] > height) continue;
      if (taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1])) continue;
      taken.push(box);
      result.push({x: log ? Math.log10(l.x) : l.x, y: l.y, text: text(l.label), showarrow: false, xanchor: "center", yanchor: "middle",
        xshift: cx - x, yshift: y - cy, font: {size: l.small ? 11 : 12, color: l.colour}, captureevents: false});
      break;
    }
  }
  return result;
}

// ---- bits per layer ----------------------------------------------------------------------------------------------
function bitScale(most) {  // one flat colour for each number of bits; 0 stands out
  const ramp = dark.matches ? ["#24303d", "#234a68", "#1f6690", "#2a86b4", "#4fa6cf", "#7fc4e2", "#b0dcee", "#e3f4fa"] : ["#eaf3f9", "#cfe4f1", "#abd0e6", "#7fb8d8", "#529dc8", "#2b7fb3", "#145f94", "#08406b"];
  const colour = (bits) => bits === 0 ? (dark.matches ? "#f08a4b" : "#d55e00") : ramp[Math.min(ramp.length - 1, Math.round((bits - 1) * (ramp.length - 1) / Math.max(most - 1, 1)))];
  const scale = [];
  for (let bits = 0; bits <= most; bits++) scale.push([bits / (most + 1), colour(bits)], [(bits + 1) / (most + 1), colour(bits)]);
  return {colorscale: scale, zmin: -.5, zmax: most + .5, showscale: false};
}
function bitLegend(div, most) {  // swatches above a heat map: a colour bar beside five rows would be unreadable
  let legend = div.previousElementSibling;
  if (!legend || !legend.classList.contains("swatches")) { legend = document.createElement("p"); legend.className = "swatches quiet"; div.before(legend); }
  const {colorscale} = bitScale(most);
  legend.replaceChildren(...[...Array(most + 1).keys()].map((bits) => {
    const swatch = document.createElement("span");
    swatch.style.borderColor = colorscale[2 * bits][1];
    swatch.textContent = bits;
    return swatch;
  }), " bits");
}
const count = (bits) => `${+bits.toFixed(2)} ${bits === 1 ? "bit" : "bits"}`;  // a mean, where a layer's filters differ
const tone = (bits) => bits > 0 ? Math.max(1, bits) : bits;  // the colour of 0 is for layers that are empty
const short = (name, most) => name.length <= most ? name : name.slice(0, Math.floor(most / 2) - 1) + "…" + name.slice(1 - Math.ceil(most / 2));
function drawLayers(section, g) {  // one row a run; on a phone one row a layer, whose names are then read from left to right
  const {layers, runs, z} = data.groups[g].bits, div = $("[data-figure=layers]", section);
  if (!runs.length) { div.textContent = "No run of this group has a scheme yet."; return; }
  const narrow = innerWidth < 700, few = runs.length <= (narrow ? 12 : 40), wide = layers.length > 60, most = Math.max(8, ...z.flat().map(Math.ceil));
  bitLegend(div, most);
  const of = (i) => `${data.runs[i].label || data.runs[i].name}, seed ${data.runs[i].seed}`;
  const told = z.map((row, k) => row.map((bits, j) => bits === null ? "" : `<b>${text(layers[j])}</b>: ${count(bits)}<br>${text(of(runs[k]))}<br>${text(data.runs[runs[k]].name)}`));
  const shown = z.map((row) => row.map((bits) => bits === null ? null : tone(bits))), numbers = z.map((row) => row.map((bits) => bits === null ? "" : `${+bits.toFixed(1)}`));
  const flip = (rows) => layers.map((_, j) => rows.map((row) => row[j]));
  const axes = {runs: {tickvals: few ? runs.map((_, k) => k) : [], ticktext: runs.map((i) => text(short(of(i), narrow ? 26 : 44))), title: {text: few ? "" : `${runs.length} runs, smallest last`}},
    layers: {tickvals: wide ? [] : layers.map((_, k) => k), ticktext: layers.map((l) => text(short(l, narrow ? 18 : 22))), title: {text: wide ? `${layers.length} layers, first to last` : ""}}};
  for (const axis of Object.values(axes)) Object.assign(axis, {showgrid: false, tickfont: {size: 11}});
  const [x, y] = narrow ? ["runs", "layers"] : ["layers", "runs"], counts = {runs: runs.length, layers: layers.length};
  const cell = narrow ? (wide ? Math.max(6, 1200 / layers.length) : 21) : runs.length <= 40 ? 24 : Math.max(5, Math.min(12, 900 / runs.length));
  const figures = counts[y] <= 60 && cell > 14 && (div.clientWidth - (narrow ? 130 : 240)) / counts[x] > 15;
  const tall = axes[x].tickvals.length ? Math.min(160, 7 * Math.max(...axes[x].ticktext.map((l) => l.length))) : 20;
  Plotly.react(div, [{type: "heatmap", x: [...Array(counts[x]).keys()], y: [...Array(counts[y]).keys()], z: narrow ? flip(shown) : shown, xgap: counts[x] > 80 ? 0 : 1, ygap: cell > 6 ? 1 : 0,
    hoverongaps: false, ...bitScale(most), ...(figures ? {text: narrow ? flip(numbers) : numbers, texttemplate: "%{text}", textfont: {size: 11}} : {}), hoverinfo: "text", hovertext: narrow ? flip(told) : told}],
    layout({height: Math.max(150, counts[y] * cell + 40 + tall), margin: {l: 20, r: 10, t: 8, b: tall + 20},
      xaxis: {...axes[x], tickangle: -90}, yaxis: {...axes[y], autorange: "reversed"}}), CONFIG);
  $("figcaption", div.parentElement).textContent = narrow ? "One column a run, smallest network last; rows in the order of the network. Touch one to see that run below." :
    "One row a run, smallest network last; columns in the order of the network. Choose a row to see that run below.";
  if (!div.listening) { div.listening = true; div.on("plotly_click", (e) => choose(runs[innerWidth < 700 ? e.points[0].x : e.points[0].y], true)); }
}

// ---- one run -----------------------------------------------------------------------------------------------------
function stageShapes(run) {
  const c = colours(), shapes = [], annotations = [];
  let start = 0;
  for (const [name, epochs] of run.curves.stages) {
    if (start) shapes.push({type: "line", yref: "paper", x0: start + .5, x1: start + .5, y0: 0, y1: 1, line: {color: c.quiet, width: 1, dash: "dot"}});
    annotations.push({x: start + .5 + epochs / 2, yref: "paper", y: 1, yanchor: "bottom", showarrow: false, text: text(name), font: {size: 11, color: c.quiet}, epochs});
    start += epochs;
  }
  return {shapes, start, annotations: annotations.filter((a) => a.epochs / start > .09).map(({epochs, ...a}) => a)};
}
function drawCurves(run) {
  const c = colours(), {shapes, annotations, start} = stageShapes(run);
  const figures = {
    accuracy: ["accuracy, %", [["train/acc", "training", c.list[1]], ["val/acc", run.val === "test set" ? "validation (the test set)" : "validation", c.list[0]]], 100],
    loss: ["loss", [["train/loss", "training", c.list[1]], ["val/loss", "validation", c.list[0]]], 1],
    penalty: ["penalty", [["train/penalty", "penalty of the regularizer", c.list[2]]], 1],
    size: ["bits per weight", [["mean_precision", "mean bits per weight", c.list[3]]], 1]};
  for (const [name, [title, curves, scale]] of Object.entries(figures)) {
    const div = $(`#run [data-figure=${name}]`), epochs = [...Array(start).keys()].map((k) => k + 1);
    const there = curves.filter(([key]) => run.curves[key]);
    div.parentElement.hidden = !there.length;
    if (!there.length) continue;
    const hidden = (k, v) => name === "size" && v === 32 ? null : v;  // a float stage would flatten the rest
    const traces = there.map(([key, label, colour]) => ({x: epochs, y: run.curves[key].map((v, k) => v === null ? null : hidden(k, v) === null ? null : v * scale), name: label, mode: start < 30 ? "lines+markers" : "lines",
      line: {color: colour, width: 1.7, shape: name === "size" ? "vh" : "linear"}, marker: {size: 5}, hovertemplate: `epoch %{x}: %{y:.4~g}<extra>${label}</extra>`}));
    if (name === "accuracy" && run.test !== null) traces.push({x: [start], y: [run.test], mode: "markers", name: "test, final", marker: {symbol: "star", size: 11, color: c.list[2]}, hovertemplate: `test ${fixed(run.test)} %<extra></extra>`});
    Plotly.react(div, traces, layout({height: 290, shapes, annotations, showlegend: traces.length > 1, hovermode: "x unified", margin: {l: 56, r: 10, t: 26, b: 40}, legend: {orientation: "h", y: -.3, yanchor: "top", x: 0},
      xaxis: {title: {text: "epoch"}, range: [.5, start + .5]}, yaxis: {title: {text: title}, rangemode: name === "size" ? "tozero" : "normal"}}), CONFIG);
  }
}
// Its column is as wide as its neighbour lets it, which comes and goes: the width is asked for at every drawing.
function drawPath(run) {
  const div = $("#run [data-figure=path]"), adjusted = run.adjustments, c = colours();
  const shown = adjusted && adjusted.x ? adjusted.epoch.map((_, k) => k).filter((k) => adjusted.x.paper.c[k] && adjusted.after[k] !== null) : [];
  div.parentElement.hidden = !shown.length;
  if (!shown.length) return;
  const x = shown.map((k) => adjusted.x.paper.c[k]), y = shown.map((k) => adjusted.after[k]), of = run.val === "test set" ? "test set" : "validation";
  const final = run.test !== null && run.x && run.x.paper.c;
  const traces = [{x, y, mode: "lines+markers", name: `${of}, after each adjustment`, line: {color: c.list[0], width: 1.3, dash: "dot"}, marker: {size: 7, symbol: "diamond"},
    hovertext: shown.map((k) => `after bits epoch ${adjusted.epoch[k] + 1}<br>${of} ${fixed(adjusted.before[k])} → ${fixed(adjusted.after[k])} %<br>${fixed(adjusted.x.paper.c[k])}×, ${fixed(adjusted.x.signed.c[k])}× with sign<br>${adjusted.saved[k].toLocaleString("en")} bits saved, ${adjusted.touched[k]} layers changed`), hoverinfo: "text"}];
  if (final) traces.push({x: [run.x.paper.c], y: [run.test], mode: "markers", name: "test, final", marker: {symbol: "star", size: 12, color: c.list[2]}, hovertemplate: `test ${fixed(run.test)} %<extra></extra>`});
  const range = [span(traces.flatMap((t) => t.x), .08), span(traces.flatMap((t) => t.y), .12)];
  const annotations = place(shown.map((k, i) => ({x: x[i], y: y[i], label: `${adjusted.epoch[k] + 1}`, colour: c.quiet, small: true})), div.clientWidth - 76, 290, ...range, false, traces);
  Plotly.react(div, traces, layout({height: 360, width: div.clientWidth, hovermode: "closest", annotations, margin: {l: 56, r: 20, t: 30, b: 40}, legend: {orientation: "h", y: -.2, yanchor: "top", x: 0},
    xaxis: {title: {text: "times smaller than float, paper's counting"}, ticksuffix: "×", range: range[0]}, yaxis: {title: {text: "accuracy, %"}, range: range[1]}}), CONFIG);
}
function bitsOffset(run) {  // epochs before the stage that is adjusted, which follows the float stage
  const stages = run.curves.stages;
  return stages.length && stages[0][0] === "float" ? stages[0][1] : 0;
}
function drawEpochs(run) {
  const div = $("#run [data-figure=epochs]"), adjusted = run.adjustments, c = colours();
  const {shapes, annotations, start} = stageShapes(run);
  div.parentElement.hidden = !run.layers.length && !adjusted;
  if (div.parentElement.hidden) return;
  const layers = run.layers.length ? run.layers.map((l) => l[0]) : Object.keys(adjusted.layers), offset = bitsOffset(run);
  const total = Math.max(start, offset + 1), first = run.curves.stages.length && run.curves.stages[0][0] === "float" && run.curves.stages.length > 1 ? run.curves.stages[0][1] : 0;
  const edges = [first + .5], columns = [];
  if (adjusted) adjusted.epoch.forEach((e, k) => { columns.push(layers.map((l) => (adjusted.layers[l] || {from: []}).from[k])); edges.push(offset + e + 1.5); });
  const last = layers.map((l, j) => adjusted && adjusted.layers[l] ? adjusted.layers[l].to.at(-1) : run.layers[j][2]);
  if (edges.at(-1) < total + .5) { columns.push(last); edges.push(total + .5); }
  const most = Math.max(8, ...columns.flat().map((bits) => Math.ceil(bits ?? 0)));
  bitLegend(div, most);
  const z = layers.map((_, j) => columns.map((column) => column[j] ?? null));
  Plotly.react(div, [{type: "heatmap", x: edges, y: layers.map((_, k) => k), z: z.map((row) => row.map((bits) => bits === null ? null : tone(bits))), xgap: 0, ygap: 1, hoverongaps: false, ...bitScale(most),
    hovertext: z.map((row, j) => row.map((bits, k) => `<b>${text(layers[j])}</b>: ${count(bits)}<br>epochs ${edges[k] + .5} to ${edges[k + 1] - .5}${layers[j] in run.damage && k === row.length - 1 ? `<br>its rounding costs ${run.damage[layers[j]]} of the training loss` : ""}`)), hoverinfo: "text"}],
    layout({height: Math.max(220, Math.min(900, layers.length * 21) + 80), shapes, annotations, margin: {l: 60, r: 10, t: 26, b: 44},
      xaxis: {title: {text: "epoch"}, range: [first + .5, total + .5], showgrid: false},
      yaxis: {autorange: "reversed", tickvals: layers.length > 60 ? [] : layers.map((_, k) => k), ticktext: layers.map((l) => text(short(l, innerWidth < 700 ? 14 : 26))), showgrid: false, tickfont: {size: 11}}}), CONFIG);
  if (!div.listening) { div.listening = true; div.on("plotly_click", (e) => { const select = $("#layer-choice"); select.selectedIndex = e.points[0].y; drawNorms(data.runs[chosen]); }); }
}
function drawNorms(run) {
  const figure = $("#norms"), div = $("[data-figure=norms]"), adjusted = run.adjustments, c = colours();
  const name = $("#layer-choice").value, layer = adjusted && adjusted.layers[name];
  figure.hidden = !layer || !layer.norms.some((n) => n.length);
  if (figure.hidden) return;
  const size = (run.layers.find((l) => l[0] === name) || [0, 1])[1], x = adjusted.epoch.map((e) => bitsOffset(run) + e + 1);
  const most = Math.max(...layer.norms.map((n) => n.length));
  const ramp = dark.matches ? ["#f0e442", "#e6b34d", "#f08a4b", "#d99cc0", "#b58be0", "#8aa0f0", "#56b4e9", "#a8dcf5"] : ["#e69f00", "#d9822b", "#d55e00", "#b0568c", "#8a4fa3", "#5a5fc0", "#0072b2", "#003f6b"];
  const traces = [...Array(most).keys()].map((b) => ({x, y: layer.norms.map((n) => b < n.length ? n[b] / Math.sqrt(size) : null), mode: "lines+markers",
    name: b === 0 ? "plane 0 (least)" : `plane ${b}`, line: {color: ramp[Math.round(b * 7 / Math.max(most - 1, 1))], width: 1.7}, marker: {size: 6},
    hovertext: layer.norms.map((n, k) => `plane ${b} of ${n.length}, norm ${n[b]}<br>${+layer.from[k].toFixed(2)} → ${+layer.to[k].toFixed(2)} bits after epoch ${x[k]}`), hoverinfo: "text"}));
  const step = Math.ceil(x.length / Math.max(4, div.clientWidth / 60));
  const annotations = x.map((e, k) => ({x: e, yref: "paper", y: 1, yanchor: "bottom", showarrow: false, text: layer.from[k] === layer.to[k] ? `${layer.to[k]}` : `<b>${layer.from[k]} → ${layer.to[k]}</b>`,
    font: {size: 11.5, color: layer.from[k] === layer.to[k] ? c.quiet : c.ink}})).filter((a, k) => layer.from[k] !== layer.to[k] || k % step === 0);
  const shapes = x.filter((_, k) => layer.from[k] !== layer.to[k]).map((e) => ({type: "line", yref: "paper", x0: e, x1: e, y0: 0, y1: 1, line: {color: c.quiet, width: 1, dash: "dot"}}));
  Plotly.react(div, traces, layout({height: 360, annotations, shapes, hovermode: "closest", margin: {l: 60, r: 16, t: 30, b: 44}, legend: {orientation: "h", y: -.2, yanchor: "top", x: 0},
    xaxis: {title: {text: "epoch of the adjustment (bits of the layer above)"}}, yaxis: {title: {text: "norm / √weights"}, rangemode: "tozero"}}), CONFIG);
}
function losesMost(run) {  // the layer that lost most bits is the one to ask about
  const layers = Object.entries(run.adjustments.layers);
  return layers.reduce((best, [name, l], k) => { const lost = l.from[0] - l.to.at(-1); return lost > best[0] ? [lost, k] : best; }, [-1, 0])[1];
}
function drawRun() {
  const run = data.runs[chosen];
  if (!run) { $("#run").hidden = true; return; }
  const numbers = [run.state, run.test === null ? null : `test ${fixed(run.test)} %`, run.valacc === null ? null : `validation ${fixed(run.valacc)} % (${run.val.replaceAll("_", " ")})`,
    run.x ? `${fixed(run.x.paper.c)}× in the paper's counting, ${fixed(run.x.signed.c)}× with sign, ${fixed(run.x.model.c)}× whole model` : null, run.act === null ? null : run.act ? `${run.act}-bit activations` : "float activations"];
  $("#run-words").textContent = [run.name, ...numbers.filter(Boolean), ...run.problems, ...run.warnings].join(" · ");
  drawCurves(run);
  drawEpochs(run);
  drawNorms(run);
  drawPath(run);  // beside the norms, which must be there or hidden before its column has its width
}
function choose(place, scroll = false) {
  chosen = place;
  $("#run-choice").value = place;
  const select = $("#layer-choice"), run = data.runs[place];
  select.replaceChildren(...Object.keys(run && run.adjustments ? run.adjustments.layers : {}).map((name) => new Option(name, name)));
  if (run && run.adjustments) select.selectedIndex = losesMost(run);
  drawRun();
  $$(".group").forEach(drawFront);
  if (scroll) $("#run").scrollIntoView({behavior: "smooth"});
}

// ---- the page ----------------------------------------------------------------------------------------------------
function drawAll() { $$(".group").forEach((section, g) => { drawFront(section, g); drawLayers(section, g); }); drawRun(); }
$$(".group").forEach((section, g) => {
  $("[data-key=paths]", section).checked = views[g].paths;
  $("[data-key=published]", section).closest("label").hidden = !data.groups[g].published.length;
  $$(".switch", section).forEach((group) => group.addEventListener("click", (e) => {
    if (!e.target.value) return;
    views[g][group.dataset.key] = e.target.value;
    $$("button", group).forEach((button) => button.classList.toggle("on", button === e.target));
    drawFront(section, g);
  }));
  $$("input", section).forEach((box) => box.addEventListener("change", () => { views[g][box.dataset.key] = box.checked; drawFront(section, g); }));
});
$$("table.sortable").forEach((table) => $$("th", table).forEach((th, k) => th.addEventListener("click", () => {
  const down = !th.classList.contains("down"), body = $("tbody", table), value = (tr) => tr.cells[k].dataset.v;
  $$("th", table).forEach((other) => other.classList.remove("up", "down"));
  th.classList.add(down ? "down" : "up");
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!x || !y) return !x - !y;
    return (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
  });
  body.append(...rows);
})));
const choice = $("#run-choice");
data.groups.forEach((group) => {
  const options = document.createElement("optgroup");
  options.label = `${group.model} on ${group.data}`;
  group.rows.forEach((row) => row.runs.forEach((i) => options.append(new Option(`${row.label}, seed ${data.runs[i].seed}${data.runs[i].state === "done" ? "" : ` (${data.runs[i].state})`}: ${data.runs[i].name}`, i))));
  choice.append(options);
});
data.runs.forEach((run, i) => { if (run.method === null) choice.append(new Option(`${run.name} (${run.state})`, i)); });
choice.addEventListener("change", () => choose(+choice.value));
$("#layer-choice").addEventListener("change", () => drawNorms(data.runs[chosen]));
document.addEventListener("click", (e) => { const link = e.target.closest("[data-run]"); if (link) choose(+link.dataset.run); });
dark.addEventListener("change", drawAll);
let width = innerWidth, timer;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; clearTimeout(timer); timer = setTimeout(drawAll, 150); } });
const telling = data.runs.findIndex((run) => run.adjustments && run.state === "done");
drawAll();
choose(telling < 0 ? 0 : telling);
document.documentElement.dataset.drawn = $$(".js-plotly-plot").length;
})();
