"use strict";
// Values under the pointer, or at the place chosen with the arrow keys, of every svg[data-chart].
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const layer = svg.appendChild(document.createElementNS(svg.namespaceURI, "g"));
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  svg.after(tip);
  const text = (value) => Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 10 });
  const near = 12;
  const panels = chart.panels.map((panel) => {
    const [left, top, width, height] = panel.box;
    const share = (value, [low, high]) => panel.log
      ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    const px = (x) => left + width * share(x, panel.x);
    const points = panel.series.flatMap((series) => series.x.map((x, i) => ({
      series, x, y: series.y[i], name: (series.names || [])[i] || "", px: px(x),
      py: series.y[i] === null ? NaN
        : Math.max(top, Math.min(top + height, top + height * (1 - share(series.y[i], panel.y)))),
    }))).filter((point) => point.py === point.py);
    points.sort((a, b) => a.px - b.px);
    return { ...panel, left, top, width, height, points, toPx: px };
  }).filter((panel) => panel.points.length);
  let shown = null; // [panel, point]

  function add(name, attributes) {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    layer.append(element);
  }
  function hide() {
    shown = null;
    layer.replaceChildren();
    tip.replaceChildren();
  }
  function line(text, color) {
    const row = document.createElement("div");
    if (color) {
      const dot = row.appendChild(document.createElement("i"));
      dot.style.background = color;
    }
    row.append(text);
    tip.append(row);
  }
  function show(panel, point, at = point.px) {
    hide();
    shown = [panel, point];
    const selected = chart.byX ? [] : [point];
    for (const series of chart.byX ? panel.series : []) {
      const own = panel.points.filter((p) => p.series === series);
      const best = own.reduce((a, b) => !a || Math.abs(b.px - point.px) < Math.abs(a.px - point.px) ? b : a, null);
      if (best && Math.abs(best.px - point.px) <= near) selected.push(best);
    }
    let head = `${chart.x}: ${point.name && chart.byX ? point.name : text(point.x)}`;
    if (chart.steps) head += `, step ${Math.round(point.x * chart.steps).toLocaleString("en")}`;
    line(head);
    for (const { series, y, name } of selected) {
      const label = [series.label || panel.label, chart.byX ? "" : name].filter(Boolean).join(", ");
      line(`${label}: ${text(y)}`, series.color);
    }
    const marks = panel.marks.filter(([, from, to]) =>
      panel.toPx(from) - near / 3 <= at && at <= panel.toPx(to) + near / 3);
    for (const label of new Set(marks.map(([label]) => label))) line(label);
    if (chart.byX) {
      add("line", { x1: point.px, x2: point.px, y1: panel.top, y2: panel.top + panel.height, class: "at" });
    }
    for (const { px, py, series } of selected) add("circle", { cx: px, cy: py, r: 3.5, style: `fill: ${series.color}` });
    const scale = svg.clientWidth / svg.viewBox.baseVal.width;
    const room = svg.parentElement.clientWidth - tip.offsetWidth;
    const x = point.px * scale;
    tip.style.left = `${Math.max(0, Math.min(room, x < svg.clientWidth / 2 ? x + 14 : x - tip.offsetWidth - 14))}px`;
    // On a phone below the curve, which it would hide.
    tip.style.top = `${(svg.clientWidth < 400 ? panel.top + panel.height : panel.top) * scale}px`;
  }
  function point(event) {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const panel = panels.find((p) => y >= p.top - near && y <= p.top + p.height + near);
    if (!panel || x < panel.left - near || x > panel.left + panel.width + near) return hide();
    const distance = (p) => Math.hypot(p.px - x, chart.byX ? (p.py - y) / 1e6 : p.py - y);
    show(panel, panel.points.reduce((a, b) => (distance(b) < distance(a) ? b : a)), x);
  }
  function press(event) {
    if (event.key === "Escape") return hide();
    const [panel, last] = shown || [panels[0], null];
    let next = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!panel || next === undefined) return;
    event.preventDefault();
    const all = panel.points.filter((p, i, points) => !chart.byX || !i || p.px !== points[i - 1].px);
    const now = last ? all.findIndex((p) => p === last || (chart.byX && p.px === last.px)) : -1;
    next = now < 0 && Number.isFinite(next) ? 0 : now + next;
    show(panel, all[Math.max(0, Math.min(all.length - 1, next))]);
  }
  if (panels.length) {
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    svg.addEventListener("keydown", press);
    svg.addEventListener("blur", hide);
  }
}
// The cell of a confusion matrix under the pointer.
for (const svg of document.querySelectorAll("svg[data-matrix]")) {
  const { names, counts, margin, cell } = JSON.parse(svg.dataset.matrix);
  const found = new Map(counts.map(([row, column, n]) => [`${row} ${column}`, n]));
  const totals = names.map(() => 0);
  for (const [row, , n] of counts) totals[row] += n;
  const tip = document.createElement("div");
  tip.className = "tip";
  svg.after(tip);
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const place = (offset) => Math.floor((offset / scale - margin) / cell);
    const [column, row] = [place(event.clientX - box.left), place(event.clientY - box.top)];
    tip.replaceChildren();
    if (!(row in names && column in names)) return;
    const n = found.get(`${row} ${column}`) || 0;
    tip.append(`${names[row]} predicted as ${names[column]}: ${n} of ${totals[row]} images`);
    const parent = svg.parentElement.getBoundingClientRect();
    const x = box.left - parent.left + (margin + column * cell) * scale;
    tip.style.left = `${Math.max(0, Math.min(x, svg.parentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${box.top - parent.top + (margin + (row + 1.3) * cell) * scale}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && tip.replaceChildren());
}
for (const button of document.querySelectorAll(".command button")) {
  const code = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C"; // not allowed: the text is selected
    }
  });
}
// Say so where a table is wider than the screen.
const mark = () => document.querySelectorAll(".scroll").forEach((box) =>
  box.classList.toggle("hint", box.scrollWidth > box.clientWidth + 1));
addEventListener("resize", mark);
document.addEventListener("toggle", mark, true);
mark();
