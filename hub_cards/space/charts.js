"use strict";
// The charts: SVG of fixed drawing size that scales with its column, and one canvas for many points.
// Every chart has a sentence as its accessible name; what it shows also stands beside it in words or in a table.

mammosae.charts = (() => {
  // On a phone the drawing is narrower, so that its text is not scaled down with it.
  const narrow = window.matchMedia("(max-width: 44rem)");
  let WIDTH = 520;
  let HEIGHT = 240;
  const LEFT = 52;
  const RIGHT = 24;
  const TOP = 14;
  const BOTTOM = 44;

  const svg = (name, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    node.append(...children.flat().filter((child) => child !== null && child !== false));
    return node;
  };

  const frame = (label, xTitle, yTitle) => {
    [WIDTH, HEIGHT] = narrow.matches ? [340, 215] : [520, 240];
    const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
    root.append(
      svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, class: "axis", "text-anchor": "middle" }, xTitle),
      svg("text", { x: -(TOP + HEIGHT - BOTTOM) / 2, y: 12, class: "axis", "text-anchor": "middle", transform: "rotate(-90)" }, yTitle));
    return root;
  };

  const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

  // Round steps for about `wanted` ticks, never fewer than two: one alone gives no scale.
  const ticks = (low, high, wanted = 4) => {
    const rough = (high - low) / wanted || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const steps = [10, 5, 2, 1, 0.5, 0.2, 0.1].map((factor) => factor * unit);
    const within = (step) => {
      const found = [];
      for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
      return found;
    };
    const usual = steps.filter((step) => step >= rough).pop();
    return within(steps.find((step) => step <= usual && within(step).length > 1) ?? usual);
  };

  // 1, 10, 100, ... up to the last rank, and that one where there is room for it.
  const rankTicks = (last) => {
    const found = [];
    for (let power = 0; 10 ** power <= last; power += 1) found.push(10 ** power);
    const room = found.length === 1 ? 1 : 3;
    return last > room * found[found.length - 1] ? [...found, last] : found;
  };

  // What tick values are divided by, so that they stay short, and how a title says so.
  const unit = (low, high) => {
    const size = Math.max(Math.abs(low), Math.abs(high));
    const exponent = size > 0 && (size < 0.005 || size >= 10000) ? Math.floor(Math.log10(size)) : 0;
    return { of: (value) => tickText(value / 10 ** exponent), title: exponent ? ` (× ${mammosae.power(exponent)})` : "" };
  };

  const tickText = (value) => mammosae.number(Number(value.toPrecision(6))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

  const xTick = (root, x, text, line = false) => root.append(
    line ? svg("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" })
      : svg("line", { x1: x, x2: x, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4, class: "rule" }),
    svg("text", { x, y: HEIGHT - BOTTOM + 16, class: "tick", "text-anchor": "middle" }, text));

  const yTick = (root, y, text) => root.append(
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }),
    svg("text", { x: LEFT - 6, y: y + 4, class: "tick", "text-anchor": "end" }, text));

  const baseline = (root) => root.append(
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "rule" }));

  // How often the latents of a table fire: their number per tenth of a power of ten of the firing rate, and the mark of one.
  const firing = (rates, mark, label) => {
    const live = Array.from(rates).filter((rate) => rate > 0);
    const root = frame(label, "fires in this share of test images (log scale)", "latents");
    if (!live.length) return root;
    const lowest = Math.min(-1, Math.floor(live.reduce((low, rate) => Math.min(low, Math.log10(rate)), 0)));
    const bins = new Array(Math.max(10, -lowest * 8)).fill(0);
    const bin = (rate) => Math.min(bins.length - 1, Math.floor(((Math.log10(rate) - lowest) / -lowest) * bins.length));
    for (const rate of live) bins[bin(rate)] += 1;
    const highest = Math.max(...bins);
    const x = scale(lowest, 0, LEFT, WIDTH - RIGHT);
    const y = scale(0, highest, HEIGHT - BOTTOM, TOP + 8);
    for (const tick of new Set([0, ...ticks(0, highest, 3).filter(Number.isInteger), ...(highest < 3 ? [highest] : [])])) yTick(root, y(tick), tickText(tick));
    for (let power = lowest; power <= 0; power += 1) xTick(root, x(power), `${tickText(100 * 10 ** power)} %`);
    const width = (WIDTH - RIGHT - LEFT) / bins.length;
    bins.forEach((count, i) => {
      if (count) {
        root.append(svg("rect", {
          x: LEFT + i * width + 0.5, width: Math.max(1, width - 1), y: y(count), height: HEIGHT - BOTTOM - y(count),
          class: mark > 0 && bin(mark) === i ? "bar here" : "bar",
        }));
      }
    });
    if (mark > 0) {
      root.append(
        svg("line", { x1: x(Math.log10(mark)), x2: x(Math.log10(mark)), y1: TOP - 6, y2: HEIGHT - BOTTOM, class: "mark" }));
    }
    baseline(root);
    return root;
  };

  // Score against rank (log scale), with the mark of one latent.
  const ranking = (scores, ranks, row, label) => {
    const points = Array.from(ranks, (rank, i) => [rank, scores[i]]).filter(([rank, score]) => rank > 0 && !Number.isNaN(score))
      .sort((one, other) => one[0] - other[0]);
    const last = points[points.length - 1][0];
    const highest = points.reduce((high, point) => Math.max(high, point[1]), 0);
    const lowest = points.reduce((low, point) => Math.min(low, point[1]), 0);
    const values = unit(lowest, highest);
    const root = frame(label, "rank (log scale)", `score${values.title}`);
    const x = scale(0, Math.log10(last), LEFT, WIDTH - RIGHT);
    const y = scale(lowest, highest, HEIGHT - BOTTOM, TOP + 4);
    for (const tick of ticks(lowest, highest, 3)) yTick(root, y(tick), values.of(tick));
    for (const rank of rankTicks(last)) xTick(root, x(Math.log10(rank)), mammosae.count(rank));
    // One point per half pixel is all that the line can show.
    let previous = -1;
    const path = [];
    for (const [rank, score] of points) {
      const at = x(Math.log10(rank));
      if (at - previous >= 0.5 || rank === last) {
        path.push(`${path.length ? "L" : "M"}${at.toFixed(1)} ${y(score).toFixed(1)}`);
        previous = at;
      }
    }
    root.append(svg("path", { d: path.join(""), class: "line plain" }));
    baseline(root);
    if (ranks[row] > 0 && !Number.isNaN(scores[row])) {
      root.append(svg("circle", { cx: x(Math.log10(ranks[row])), cy: y(scores[row]), r: 5.5, class: "dot" }));
    }
    return root;
  };

  // AUROC against k for both modes, each with its random groups, and the k at which the latent is in the group.
  const sweep = (rows, enters, label) => {
    const root = frame(label, "k, latents per class in the group", "AUROC");
    const ks = [...new Set(rows.map((row) => row.k))].sort((one, other) => one - other);
    // Equal steps from one tested k to the next: the tested values are spread too unevenly for any scale.
    const x = (k) => scale(0, Math.max(1, ks.length - 1), LEFT + 14, WIDTH - RIGHT - 14)(ks.indexOf(k));
    const known = rows.flatMap((row) => [row.auroc, row.random_auroc_low, row.random_auroc_high]).filter((value) => value !== null);
    const floor = Math.min(0.5, ...known) >= 0.4 ? 0.4 : 0;
    const y = scale(floor, 1, HEIGHT - BOTTOM, TOP);
    for (const tick of ticks(floor, 1, 5)) yTick(root, y(tick), tick.toFixed(1));
    const every = Math.ceil(ks.length / (narrow.matches ? 8 : 12));
    ks.forEach((k, i) => {
      if ((enters === null || Math.abs(i - ks.indexOf(enters)) >= every) && i % every === 0 || k === enters) xTick(root, x(k), tickText(k));
    });
    if (enters !== null) root.append(svg("line", { x1: x(enters), x2: x(enters), y1: TOP - 6, y2: HEIGHT - BOTTOM, class: "mark" }));
    root.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(0.5), y2: y(0.5), class: "chance" }));
    for (const mode of ["activate", "deactivate"]) {
      const own = rows.filter((row) => row.mode === mode && row.auroc !== null).sort((one, other) => one.k - other.k);
      const line = (name) => own.filter((row) => row[name] !== null)
        .map((row, i) => `${i ? "L" : "M"}${x(row.k).toFixed(1)} ${y(row[name]).toFixed(1)}`).join("");
      root.append(
        svg("path", { d: line("random_auroc_mean"), class: `line random ${mode}` }),
        svg("path", { d: line("auroc"), class: `line ${mode}` }),
        ...own.map((row) => svg("circle", { cx: x(row.k), cy: y(row.auroc), r: row.k === enters ? 5 : 3, class: `point ${mode}` })));
    }
    baseline(root);
    return root;
  };

  // How strongly a latent fires, by class: rows {class, last, edges, n_images, n}. Bins differ in width, so that heights are shares per unit.
  const histogram = (rows, label) => {
    const heights = rows.map((row) => row.n_images.map((images, i) => (images === null || !row.n ? 0 : images / row.n / (row.edges[i + 1] - row.edges[i] || 1))));
    const last = Math.max(...rows.map((row) => row.edges[row.edges.length - 1]));
    const first = Math.min(0, ...rows.map((row) => row.edges[0]));
    const highest = Math.max(...heights.flat(), 0) || 1;
    const [across, up] = [unit(first, last), unit(0, highest)];
    const root = frame(label, `activation${across.title}`, `share of class per unit${up.title}`);
    const x = scale(first, last, LEFT, WIDTH - RIGHT);
    const y = scale(0, highest, HEIGHT - BOTTOM, TOP + 4);
    for (const tick of ticks(0, highest, 3)) yTick(root, y(tick), up.of(tick));
    for (const tick of ticks(first, last, narrow.matches ? 3 : 5)) xTick(root, x(tick), across.of(tick));
    rows.forEach((row, r) => {
      const steps = heights[r].map((height, i) => `V${y(height).toFixed(1)}H${x(row.edges[i + 1]).toFixed(1)}`).join("");
      root.append(svg("path", { d: `M${x(row.edges[0]).toFixed(1)} ${y(0).toFixed(1)}${steps}V${y(0).toFixed(1)}`, class: `step class${row.last ? "-last" : row.class}` }));
    });
    baseline(root);
    return root;
  };

  // Many points on a canvas: xs against ys, the marked ones on top. Returns {node, draw}; `draw` again after a change of theme.
  const scatter = (xs, ys, marked, { xTitle, yTitle, label, onpick }) => {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    const tip = mammosae.el("p", { class: "tip", "aria-hidden": "true" }, "\u00a0");
    const node = mammosae.el("div", { class: "scatter" }, canvas, tip);
    let places = [];

    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(name).trim();
      const width = Math.max(260, Math.min(node.clientWidth || 520, 620));
      const height = Math.round(width * 0.86);
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const range = (values) => values.reduce(([low, high], value) =>
        (Number.isNaN(value) ? [low, high] : [Math.min(low, value), Math.max(high, value)]), [Infinity, -Infinity]);
      const padded = ([low, high]) => (low < high ? [low - 0.04 * (high - low), high + 0.04 * (high - low)] : [low - 1, high + 1]);
      const [xLow, xHigh] = padded(range(xs));
      const [yLow, yHigh] = padded(range(ys));
      const [across, up] = [unit(xLow, xHigh), unit(yLow, yHigh)];
      const left = 62;
      const bottom = height - 46;
      const x = scale(xLow, xHigh, left, width - 12);
      const y = scale(yLow, yHigh, bottom, 10);
      pen.font = getComputedStyle(node).font.replace(/^[^"']*?\d+(\.\d+)?px(\/\S+)?/, "12px");
      pen.lineWidth = 1;
      pen.strokeStyle = color("--soft");
      pen.fillStyle = color("--muted");
      for (const tick of ticks(xLow, xHigh, width < 420 ? 3 : 5)) {
        pen.beginPath(); pen.moveTo(x(tick), 10); pen.lineTo(x(tick), bottom); pen.stroke();
        pen.textAlign = "center"; pen.fillText(across.of(tick), x(tick), bottom + 16);
      }
      for (const tick of ticks(yLow, yHigh, 5)) {
        pen.beginPath(); pen.moveTo(left, y(tick)); pen.lineTo(width - 12, y(tick)); pen.stroke();
        pen.textAlign = "right"; pen.fillText(up.of(tick), left - 6, y(tick) + 4);
      }
      const [from, to] = [Math.max(xLow, yLow), Math.min(xHigh, yHigh)];
      if (from < to) {
        pen.strokeStyle = color("--dim");
        pen.setLineDash([4, 4]);
        pen.beginPath(); pen.moveTo(x(from), y(from)); pen.lineTo(x(to), y(to)); pen.stroke();
        pen.setLineDash([]);
      }
      pen.fillStyle = color("--ink");
      pen.textAlign = "center";
      pen.fillText(xTitle + across.title, (left + width - 12) / 2, height - 8, width - left - 12);
      pen.save();
      pen.translate(13, (10 + bottom) / 2);
      pen.rotate(-Math.PI / 2);
      pen.fillText(yTitle + up.title, 0, 0, bottom - 10);
      pen.restore();

      places = [];
      const dot = (i, radius, fill, alpha) => {
        if (Number.isNaN(xs[i]) || Number.isNaN(ys[i])) return;
        pen.globalAlpha = alpha;
        pen.fillStyle = fill;
        pen.beginPath(); pen.arc(x(xs[i]), y(ys[i]), radius, 0, 2 * Math.PI); pen.fill();
        places.push([x(xs[i]), y(ys[i]), i]);
      };
      for (let i = 0; i < xs.length; i += 1) if (!marked.has(i)) dot(i, 2.2, color("--dim"), 0.55);
      for (const [i, kind] of marked) {
        dot(i, 4.5, color({ both: "--both", left: "--activate", right: "--deactivate" }[kind]), 1);
      }
      pen.globalAlpha = 1;
    };

    const nearest = (event) => {
      const box = canvas.getBoundingClientRect();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      let best = null;
      let least = 144;
      for (const [x, y, i] of places) {
        const distance = (x - px) ** 2 + (y - py) ** 2;
        if (distance <= least) [least, best] = [distance, i];
      }
      return best;
    };
    canvas.addEventListener("mousemove", (event) => {
      const found = nearest(event);
      canvas.style.cursor = found === null ? "" : "pointer";
      tip.textContent = found === null ? "\u00a0" : onpick(found, false);
    });
    canvas.addEventListener("click", (event) => {
      const found = nearest(event);
      if (found !== null) onpick(found, true);
    });
    return { node, draw };
  };

  return { firing, ranking, sweep, histogram, scatter };
})();
