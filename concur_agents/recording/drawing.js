// Plots over time: all share `times` and `view`, one cursor and one zoom. The page sets `END`, `view`,
// `times`, `waits` and `cuts`, makes its plots, says in `drawMore` what else it draws, and calls `drawAll`.
const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.body).getPropertyValue("--" + name).trim();
const make = (tag, props, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
const LEFT = 52, RIGHT = 8, TOP = 6, BOTTOM = 18;
const COLORS = ["reasoning", "paused", "limit", "shadow", "capacity", "soft", "acting", "queued"];
let END = 1e-6, view = [0, END], cursor = null;
let times = [], waits = [], cuts = [], plots = [], drawMore = () => {};

const short = (v) => {
  if (v == null) return "-";
  const a = Math.abs(v);
  if (a >= 1e6) return (v / 1e6).toFixed(a >= 1e7 ? 0 : 1) + "M";
  if (a >= 1e4) return (v / 1e3).toFixed(0) + "k";
  if (a >= 1e3) return (v / 1e3).toFixed(1) + "k";
  return a >= 100 || v === Math.round(v) ? v.toFixed(0) : a >= 1 ? v.toFixed(1) : v.toFixed(2);
};
const clock = (s) => {
  if (END < 600) return s.toFixed(view[1] - view[0] < 20 ? 1 : 0) + " s";
  const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, r = Math.floor(s % 60);
  const two = (n) => String(n).padStart(2, "0");
  return (h ? h + ":" + two(m) : m) + ":" + two(r);
};
const ticks = (from, to, count) => {
  const raw = (to - from) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw) || raw;
  const out = [];
  for (let v = Math.ceil(from / step) * step; v <= to + step * 1e-6; v += step) out.push(v);
  return out;
};
const TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
const timeTicks = (from, to, count) => {
  const step = TIMES.find((n) => n >= (to - from) / Math.max(1, count));
  if (!step || to - from < 4) return ticks(from, to, count);
  const out = [];
  for (let s = Math.ceil(from / step) * step; s <= to; s += step) out.push(s);
  return out;
};
const prepare = (canvas, height) => {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 300;
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.font = "11px system-ui, sans-serif";
  return [c, width];
};
const toX = (s, width) => LEFT + (s - view[0]) / (view[1] - view[0]) * (width - LEFT - RIGHT);
const toS = (x, width) => view[0] + (x - LEFT) / (width - LEFT - RIGHT) * (view[1] - view[0]);
const indexAt = (s) => {  // last sample at or before s
  let low = 0, high = times.length;
  while (low < high) { const mid = (low + high) >> 1; if (times[mid] <= s) low = mid + 1; else high = mid; }
  return Math.max(0, low - 1);
};
const drawTimes = (c, width, top, bottom) => {
  c.fillStyle = css("dim"); c.textAlign = "center"; c.textBaseline = "top";
  c.strokeStyle = css("line"); c.lineWidth = 1;
  for (const s of timeTicks(view[0], view[1], width / 110)) {
    const x = toX(s, width);
    c.beginPath(); c.moveTo(x, top); c.lineTo(x, bottom); c.stroke();
    c.fillText(clock(s), Math.min(x, width - 20), bottom + 4);
  }
};
const drawCursor = (c, width, top, bottom) => {
  if (cursor == null || cursor < view[0] || cursor > view[1]) return;
  c.strokeStyle = css("soft"); c.lineWidth = 1; c.setLineDash([3, 3]);
  const x = toX(cursor, width);
  c.beginPath(); c.moveTo(x, top); c.lineTo(x, bottom); c.stroke(); c.setLineDash([]);
};

// A plot over the samples: lines, steps or stacked areas; `dots` are the waits.
class Plot {
  constructor(name, title, about, series, options = {}) {
    this.series = series.filter((s) => s.values);
    if (!this.series.length && !options.dots) return;
    Object.assign(this, { name, options, height: options.height || 190, hidden: new Set() });
    this.canvas = make("canvas", {});
    this.canvas.dataset.plot = name;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", title);
    const legend = make("div", { className: "legend" });
    for (const s of this.series) {
      const mark = make("i", { className: s.area ? "area" : "" });
      mark.style.background = `var(--${s.color})`;
      const button = make("button", { type: "button" }, mark, s.label);
      button.setAttribute("aria-pressed", "true");
      button.onclick = () => {
        this.hidden.has(s) ? this.hidden.delete(s) : this.hidden.add(s);
        button.setAttribute("aria-pressed", String(!this.hidden.has(s)));
        this.draw();
      };
      legend.append(button);
    }
    $("plots").append(make("section", {}, make("h2", { textContent: title }),
      make("p", { textContent: about }), legend, this.canvas));
    listen(this.canvas, (s) => this.describe(s));
    plots.push(this);
  }
  shown() { return this.series.filter((s) => !this.hidden.has(s)); }
  top() {
    if (this.options.max) return this.options.max;
    let most = 0;
    const from = indexAt(view[0]), to = Math.min(times.length - 1, indexAt(view[1]) + 1);
    const stacked = this.shown().filter((s) => s.area);
    for (let i = from; i <= to; i++) {
      let sum = 0;
      for (const s of stacked) sum += s.values[i] || 0;
      most = Math.max(most, sum);
      for (const s of this.shown()) if (!s.area && !s.ceiling) most = Math.max(most, s.values[i] || 0);
    }
    for (const s of this.shown()) if (s.ceiling) {  // shown if it is near, else it would flatten all
      const v = s.values.find((x) => x != null);
      if (v != null && v < 4 * most) most = Math.max(most, v);
    }
    if (this.options.dots)
      for (const w of waits) if (w[2] + w[3] >= view[0] && w[2] <= view[1]) most = Math.max(most, w[3]);
    return most * 1.06 || 1;
  }
  draw() {
    const [c, width] = prepare(this.canvas, this.height);
    const bottom = this.height - BOTTOM, top = this.top();
    const y = (v) => bottom - v / top * (bottom - TOP);
    drawTimes(c, width, TOP, bottom);
    c.textAlign = "right"; c.textBaseline = "middle"; c.fillStyle = css("dim");
    for (const v of ticks(0, top, 4)) {
      c.strokeStyle = css("line"); c.beginPath(); c.moveTo(LEFT, y(v)); c.lineTo(width - RIGHT, y(v)); c.stroke();
      c.fillText(this.options.percent ? Math.round(v * 100) + " %" : short(v), LEFT - 5, y(v));
    }
    c.save(); c.beginPath(); c.rect(LEFT, 0, width - LEFT - RIGHT, bottom + 1); c.clip();
    let drawn = 0;
    const from = Math.max(0, indexAt(view[0]) - 1), to = Math.min(times.length - 1, indexAt(view[1]) + 2);
    const base = new Float64Array(times.length);
    for (const s of this.shown().filter((s) => s.area)) {
      c.fillStyle = css(s.color); c.beginPath();
      for (let i = from; i <= to; i++) { c.lineTo(toX(times[i], width), y(base[i] + (s.values[i] || 0))); drawn++; }
      for (let i = to; i >= from; i--) c.lineTo(toX(times[i], width), y(base[i]));
      c.fill();
      for (let i = from; i <= to; i++) base[i] += s.values[i] || 0;
    }
    for (const s of this.shown().filter((s) => !s.area)) {
      c.strokeStyle = css(s.color); c.lineWidth = s.thin ? 1.2 : 2; c.setLineDash(s.dash || []);
      c.beginPath();
      let down = false, last = null;
      for (let i = from; i <= to; i++) {
        const v = s.values[i];
        if (v == null) { down = false; continue; }
        const x = toX(times[i], width);
        if (!down) c.moveTo(x, y(v)); else { if (s.step) c.lineTo(x, y(last)); c.lineTo(x, y(v)); }
        down = true; last = v; drawn++;
      }
      c.stroke(); c.setLineDash([]);
    }
    if (this.options.dots) {
      for (const [agent, kind, at, waited] of waits) {
        if (at > view[1] || at + waited < view[0]) continue;
        c.fillStyle = css(kind); c.globalAlpha = .85;
        c.beginPath(); c.arc(toX(at, width), y(waited), 3, 0, 7); c.fill(); drawn++;
      }
      c.globalAlpha = 1;
    }
    if (this.options.cuts) {
      c.strokeStyle = css("capacity"); c.lineWidth = 1; c.globalAlpha = .5;
      for (const [at] of cuts) {
        c.beginPath(); c.moveTo(toX(at, width), TOP); c.lineTo(toX(at, width), TOP + 12); c.stroke();
      }
      c.globalAlpha = 1;
    }
    drawCursor(c, width, TOP, bottom);
    c.restore();
    this.canvas.dataset.drawn = drawn;
  }
  describe(s) {
    const i = indexAt(s), lines = [clock(s)];
    for (const item of this.shown()) {
      const v = item.values[i];
      lines.push(item.label + ": " + (v == null ? "-" : this.options.percent ? (v * 100).toFixed(1) + " %"
        : short(v) + (this.options.unit ? " " + this.options.unit : "")));
    }
    if (this.options.cuts) for (const [at, what] of cuts)
      if (Math.abs(at - s) < (view[1] - view[0]) / 150) lines.push(what + " at " + clock(at));
    if (this.options.dots) {
      const near = waits.filter((w) => Math.abs(w[2] - s) < (view[1] - view[0]) / 100).slice(0, 6);
      for (const w of near) lines.push(`${w[0]}: ${w[1]} ${w[3].toFixed(1)} s`);
    }
    return lines.join("\n");
  }
}

// Pointer: hover moves the cursor of all plots, a drag zooms them all.
let frame = 0;
const redraw = () => { if (!frame) frame = requestAnimationFrame(() => { frame = 0; drawAll(); }); };
const listen = (canvas, describe) => {
  let from = null;
  const at = (e) => {
    const box = canvas.getBoundingClientRect();
    return [Math.min(view[1], Math.max(view[0], toS(e.clientX - box.left, box.width))), e.clientY - box.top];
  };
  canvas.onpointerdown = (e) => {
    from = at(e)[0];
    try { canvas.setPointerCapture(e.pointerId); } catch { /* a pointer that is gone already */ }
  };
  canvas.onpointermove = (e) => {
    const [s, y] = at(e);
    cursor = s;
    const tip = $("tip"), text = describe(s, y);
    tip.textContent = from != null && Math.abs(s - from) > 0 ? clock(Math.min(s, from)) + " to " + clock(Math.max(s, from)) : text;
    tip.style.display = tip.textContent ? "block" : "none";
    tip.style.left = Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 6) + "px";
    tip.style.top = Math.max(4, Math.min(e.clientY + 14, innerHeight - tip.offsetHeight - 6)) + "px";
    redraw();
  };
  canvas.onpointerup = (e) => {
    const s = at(e)[0];
    if (from != null && Math.abs(s - from) > (view[1] - view[0]) / 80) view = [Math.min(s, from), Math.max(s, from)];
    from = null;
    redraw();
  };
  canvas.onpointercancel = () => { from = null; };
  canvas.onpointerleave = () => { $("tip").style.display = "none"; cursor = null; redraw(); };
  canvas.ondblclick = () => { view = [0, END]; redraw(); };
};
const drawAll = () => {
  for (const plot of plots) plot.draw();
  drawMore();
};
const minus = (a, b) => a && b && a.map((v, i) => v == null || b[i] == null ? null : Math.max(0, v - b[i]));
window.onresize = redraw;
matchMedia("(prefers-color-scheme: dark)").onchange = redraw;
