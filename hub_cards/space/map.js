"use strict";
// The map of latents: near ones look for similar things in the layer's channels. Its whole state lies in the address.

mammosae.pages.map = (() => {
  const { el, fixed, count, counted, firingRate, conceptName, encoderName } = mammosae;
  const UNCERTAIN = 0.05;  // a concept is told where q is at most this
  const HOVERS = window.matchMedia("(hover: hover)").matches;  // a finger cannot point without tapping
  const NOTHING = `None is chosen: ${HOVERS ? "point at one, or use the arrow keys" : "tap one"}.`;
  const CLASSES = 5;  // colours of concepts; further ones share the last

  const clear = (value) => value !== undefined && !Number.isNaN(value);

  // What points can be coloured by: `legend` are [class of a colour, words], `of` gives a latent's place in it, -1 for none.
  const colourings = (table, concept, study) => {
    const evidence = concept.evidence;
    const judged = Object.values(table.concepts).filter((one) => one.evidence);
    const roles = new Map(study.roles.filter((row) => mammosae.belongs(row, table.info, concept.name)).map((row) => [row.latent, row.role]));
    const kinds = [...new Set(roles.values())].sort();
    const steps = (edges, write, colours) => colours.map((colour, i) => [colour, i === 0 ? `below ${write(edges[0])}` : i === edges.length ? `${write(edges[i - 1])} and more`
      : `${write(edges[i - 1])} to ${write(edges[i])}`]);
    const place = (edges) => (value) => (clear(value) ? edges.filter((edge) => value >= edge).length : -1);
    const [aurocs, rates] = [[0.3, 0.4, 0.6, 0.7], [0.001, 0.01, 0.1, 0.5]];
    const best = (row) => judged.map((one, i) => [i, Math.abs(one.evidence.auroc[row] - 0.5), one.evidence.auroc_q[row]])
      .filter(([, far, q]) => clear(far) && q <= UNCERTAIN).sort((one, other) => other[1] - one[1])[0]?.[0] ?? -1;
    return [
      judged.length > 1 && { key: "concept", text: "Concept told best", legend: judged.map((one, i) => [`c${Math.min(i, CLASSES - 1)}`, conceptName(one.name)]), of: best, rest: "none (q above 0.05), or not known" },
      evidence && { key: "auroc", text: "AUROC of the concept", legend: steps(aurocs, (value) => value.toFixed(1), ["d0", "d1", "d2", "d3", "d4"]), of: (row) => place(aurocs)(evidence.auroc[row]), rest: "not known" },
      evidence && { key: "verdict", text: "Verdict", legend: mammosae.VERDICTS.slice(0, -1).map((word, i) => [`c${i}`, word]), of: (row) => mammosae.VERDICTS.slice(0, -1).indexOf(evidence.verdict[row]), rest: "unclear, or not known" },
      kinds.length && { key: "role", text: "Role", legend: kinds.map((role, i) => [`c${Math.min(i, CLASSES - 1)}`, role]), of: (row) => kinds.indexOf(roles.get(table.latent[row])), rest: "no role was looked for" },
      { key: "density", text: "How often it fires", legend: steps(rates, mammosae.percent, ["q0", "q1", "q2", "q3", "q4"]), of: (row) => place(rates)(table.rate[row]), rest: "hidden" },
    ].filter(Boolean);
  };

  const mapped = (study) => study.tables.filter((info) => study.maps?.[info.layer]);

  const read = (params) => {
    const { studies } = mammosae.data.index;
    const usual = studies.findIndex((study) => mapped(study).length);
    const wanted = Number(params.get("study")) - 1;
    const study = studies[wanted] && mapped(studies[wanted]).length ? wanted : usual;
    const all = mapped(studies[study]);
    const layers = studies[study].layers.filter((layer) => all.some((info) => info.layer === layer));
    const layer = layers.includes(params.get("layer")) ? params.get("layer") : layers[layers.length - 1];
    const tables = all.filter((info) => info.layer === layer);
    const info = tables.find((one) => one.encoder === params.get("encoder")) ?? tables[tables.length - 1];
    const concepts = info.concepts.map((entry) => entry.concept);
    const concept = concepts.includes(params.get("concept")) ? params.get("concept") : concepts[0];
    const latent = /^\d+$/.test(params.get("latent") ?? "") ? Number(params.get("latent")) : null;
    return { study, layers, layer, tables, info, concepts, concept, colour: params.get("colour") ?? "", latent };
  };

  const address = (state) => mammosae.address(["map"], {
    study: state.study ? state.study + 1 : "", layer: state.layers[state.layers.length - 1] === state.layer ? "" : state.layer,
    encoder: state.tables[state.tables.length - 1] === state.info ? "" : state.info.encoder, concept: state.concept === state.concepts[0] ? "" : state.concept,
    colour: state.colour, latent: state.latent,
  });

  // The drawing: points {x, y, row, colour}, `tell` gives what to say of one, `open` follows it. Returns {node, tip, draw}.
  const drawing = (points, marked, { label, tell, open }) => {
    const canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": label, "aria-describedby": "map-keys" });
    const tip = el("p", { class: "tip", role: "status", id: "map-tip" }, NOTHING);
    const whole = { x: 0, y: 0, scale: 1 };
    const range = (name) => points.reduce(([low, high], point) => [Math.min(low, point[name]), Math.max(high, point[name])], [Infinity, -Infinity]);
    const [[left, right], [bottom, top]] = [range("x"), range("y")];
    let view = { ...whole };
    let at = marked;  // the point that the keyboard is on
    let size = { width: 0, height: 0 };
    const places = new Float64Array(2 * points.length);

    const zoom = (factor, cx = size.width / 2, cy = size.height / 2) => {
      const scale = Math.min(40, Math.max(1, view.scale * factor));
      const by = scale / view.scale;
      view = scale === 1 ? { ...whole } : { scale, x: cx - by * (cx - view.x), y: cy - by * (cy - view.y) };
      canvas.style.touchAction = scale === 1 ? "" : "none";  // a finger scrolls the page, and drags a zoomed map
      draw();
    };

    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(`--${name}`).trim();
      const width = Math.max(260, Math.min(node.clientWidth || 640, 900));
      const height = Math.round(Math.min(width * (width < 500 ? 1 : 0.8), Math.max(360, window.innerHeight - 330)));
      const ratio = window.devicePixelRatio || 1;
      size = { width, height };
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const margin = 14;
      const fit = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (top - bottom || 1));
      const radius = Math.min(5, Math.max(1.6, 60 / Math.sqrt(points.length))) * Math.min(2, Math.sqrt(view.scale));
      const byColour = new Map();
      points.forEach((point, i) => {
        const px = view.x + view.scale * (width / 2 + fit * (point.x - (left + right) / 2));
        const py = view.y + view.scale * (height / 2 - fit * (point.y - (bottom + top) / 2));
        [places[2 * i], places[2 * i + 1]] = [px, py];
        if (px < -9 || py < -9 || px > width + 9 || py > height + 9) return;
        if (!byColour.has(point.colour)) byColour.set(point.colour, []);
        byColour.get(point.colour).push(i);
      });
      // What has a colour lies on top of what has none, which are rings, so that no grey of a scale looks like them.
      for (const [name, own] of [...byColour].sort(([one], [other]) => (other === "dim") - (one === "dim"))) {
        const ring = name === "dim";
        const r = ring ? radius * 0.85 : radius;
        pen.beginPath();
        for (const i of own) {
          pen.moveTo(places[2 * i] + r, places[2 * i + 1]);
          pen.arc(places[2 * i], places[2 * i + 1], r, 0, 2 * Math.PI);
        }
        [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [color(name), color(name), Math.min(1, radius / 3)];
        if (ring) pen.stroke(); else pen.fill();
      }
      if (at !== null) {
        pen.lineWidth = 2.5;
        pen.strokeStyle = color("mark");
        pen.beginPath();
        pen.arc(places[2 * at], places[2 * at + 1], radius + 5, 0, 2 * Math.PI);
        pen.stroke();
      }
    };

    const nearest = (px, py, beyond = () => true) => {
      let [best, least] = [null, Infinity];
      for (let i = 0; i < points.length; i += 1) {
        const [dx, dy] = [places[2 * i] - px, places[2 * i + 1] - py];
        const distance = dx * dx + dy * dy;
        if (distance < least && beyond(i, dx, dy)) [least, best] = [distance, i];
      }
      return [best, Math.sqrt(least)];
    };
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const [found, distance] = nearest(event.clientX - box.left, event.clientY - box.top);
      return distance <= 12 ? found : null;
    };
    const say = (i) => { tip.replaceChildren(...(i === null ? [NOTHING] : tell(points[i]))); };
    const select = (i) => {
      at = i;
      const [px, py] = [places[2 * i], places[2 * i + 1]];
      if (px < 0 || py < 0 || px > size.width || py > size.height) view = { ...view, x: view.x + size.width / 2 - px, y: view.y + size.height / 2 - py };
      draw();
      say(i);
    };

    let drag = null;
    canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, from: view, moved: false }; });
    canvas.addEventListener("pointermove", (event) => {
      if (drag && event.buttons && view.scale > 1) {
        const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
        drag.moved ||= Math.hypot(dx, dy) > 4;
        if (drag.moved) { view = { ...view, x: drag.from.x + dx, y: drag.from.y + dy }; draw(); }
        return;
      }
      const found = under(event);
      canvas.style.cursor = found === null ? "" : "pointer";
      say(found ?? at);
    });
    canvas.addEventListener("click", (event) => {
      if (drag?.moved) return;
      const found = under(event);
      if (found === null) return;
      // A mouse has read the latent before it clicks; a finger reads it by its first tap.
      if (event.pointerType === "touch" && found !== at) select(found); else open(points[found]);
    });
    canvas.addEventListener("focus", () => { if (at === null && points.length && canvas.matches(":focus-visible")) select(nearest(size.width / 2, size.height / 2)[0]); });
    canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || at === null) return;
      const [px, py] = [places[2 * at], places[2 * at + 1]];
      // The nearest within 45 degrees of the arrow.
      const towards = { ArrowRight: (dx, dy) => dx > Math.abs(dy), ArrowLeft: (dx, dy) => -dx > Math.abs(dy), ArrowDown: (dx, dy) => dy > Math.abs(dx), ArrowUp: (dx, dy) => -dy > Math.abs(dx) }[event.key];
      const does = { Enter: () => open(points[at]), "+": () => zoom(1.6, px, py), "-": () => zoom(1 / 1.6, px, py), 0: () => zoom(0) }[event.key];
      if (!towards && !does) return;
      event.preventDefault();
      if (does) return does();
      const [next] = nearest(px, py, (i, dx, dy) => i !== at && towards(dx, dy));
      if (next !== null) select(next);
    });
    const button = (id, text, name, does) => el("button", { type: "button", id, "aria-label": name, onclick: does }, text);
    const node = el("div", { class: "map" }, canvas, el("div", { class: "tools" },
      button("closer", "+", "Closer", () => zoom(1.6)), button("farther", "−", "Farther", () => zoom(1 / 1.6)), button("all", "Whole map", "Whole map", () => zoom(0))));
    return { node, tip, draw: () => { draw(); say(at); } };
  };

  return async (root, { params }) => {
    const { studies } = mammosae.data.index;
    mammosae.add(root, el("h1", {}, "Map of latents"));
    if (!studies.some((study) => mapped(study).length)) {
      mammosae.add(root, el("p", { class: "missing" }, "These findings hold no map of latents: they are of an earlier version, or too few latents fire. "), el("p", {}, el("a", { href: "#/" }, "All latents")));
      return "Map of latents";
    }
    let state = read(params);
    const form = el("form", { class: "filters fields", "aria-label": "Choose what the map shows", onsubmit: (event) => event.preventDefault() });
    const box = el("div", {});
    mammosae.add(root, el("p", { class: "lead" }, "Every point is a latent that fires; those that lie together have similar directions in the layer's channels. ",
      el("a", { href: "#/" }, "The list"), " has the same latents as text."), form, box);

    const change = (values) => {
      state = read(mammosae.parse(address({ ...state, ...values })).params);
      mammosae.remember(address(state));
      return show();
    };

    let turn = 0;
    const show = async () => {
      const mine = (turn += 1);
      const { info, concept: name } = state;
      const study = studies[state.study];
      box.setAttribute("aria-busy", "true");
      const about = study.maps[info.layer];
      const [table, places] = await Promise.all([mammosae.table(info), mammosae.load(about.file)]);
      if (mine !== turn) return;
      const concept = table.concepts[name];
      const choices = colourings(table, concept, study);
      const colouring = choices.find((one) => one.key === state.colour) ?? choices[0];
      const counts = new Map();
      const points = [];
      places.latent.forEach((latent, i) => {
        const row = table.byLatent.get(latent);
        if (row === undefined) return;
        const colour = colouring.legend[colouring.of(row)]?.[0] ?? "dim";
        counts.set(colour, (counts.get(colour) ?? 0) + 1);
        points.push({ x: places.x[i], y: places.y[i], row, colour });
      });
      const focused = document.activeElement?.id;
      form.replaceChildren(...[
        studies.length > 1 && mammosae.choice("Study", "study", studies.map((one, i) => [String(i + 1), mammosae.studyName(i)]).filter((_, i) => mapped(studies[i]).length), String(state.study + 1),
          (value) => change({ study: Number(value) - 1, latent: null }), { long: true }),
        mammosae.choice("Colour by", "colour", choices.map((one) => [one.key, one.text]), colouring.key, (colour) => change({ colour }), { long: true }),
        mammosae.choice("Concept", "concept", state.concepts.map((one) => [one, conceptName(one)]), name, (value) => change({ concept: value }), { long: true }),
        mammosae.choice("Layer", "layer", state.layers.map((one) => [one, one]), info.layer, (layer) => change({ layer, latent: null, info: { encoder: info.encoder } })),
        mammosae.choice("Encoder", "encoder", state.tables.map((one) => [one.encoder, encoderName(one.encoder)]), info.encoder,
          (encoder) => change({ info: state.tables.find((one) => one.encoder === encoder) }), { long: true }),
      ].filter(Boolean));
      const link = (row) => mammosae.latentAddress(info, table.latent[row], name);
      const tell = ({ row }) => {
        const latent = table.latent[row];
        const called = table.names.get(latent)?.[0];
        const auroc = mammosae.estimate(concept, row, "auroc");
        const verdict = mammosae.evidence(concept, row, "verdict");
        return [el("a", { href: link(row) }, `Latent ${latent}`), [called && `${conceptName(called.name)} (${mammosae.nameScore(called)})`, `fires in ${firingRate(table.rate[row])}`,
          concept.evidence && `${conceptName(name)}: AUROC ${auroc}${verdict ? `, ${verdict}` : ""}`].filter(Boolean).map((text) => ` · ${text}`).join("")];
      };
      const marked = points.findIndex(({ row }) => table.latent[row] === state.latent);
      const picture = drawing(points, marked < 0 ? null : marked, {
        label: `Map of ${counted(points.length, "latent")}, coloured by ${mammosae.inSentence(colouring.text)}`, tell,
        open: ({ row }) => { location.hash = link(row); },
      });
      const key = ([colour, text]) => el("li", {}, el("span", { class: `key ${colour}` }, text), ` (${count(counts.get(colour) ?? 0)})`);
      box.replaceChildren(el("div", { class: "beside" }, picture.node, el("div", {},
        el("h2", {}, "Latent"), picture.tip,
        el("h2", {}, colouring.text), el("ul", { class: "legend" }, [...colouring.legend, ["dim", colouring.rest]].map(key)),
        el("p", { class: "small", id: "map-keys" }, `${HOVERS ? "Point at a latent to read it, and click to open it" : "Tap a latent to read it, and tap it again to open it"}. With a keyboard, arrows move to the next latent, Enter opens it, + and − zoom, and 0 shows the whole. A zoomed map can be dragged.`),
        el("h2", {}, "How far it can be trusted"), el("p", { id: "worth" }, worth(about, points.length)))));
      mammosae.redraw = picture.draw;
      picture.draw();
      box.setAttribute("aria-busy", "false");
      if (focused) document.getElementById(focused)?.focus();
    };

    const worth = (about, shown) => [
      clear(about.trustworthiness ?? NaN) ? `Trustworthiness (Venna and Kaski) is ${fixed(about.trustworthiness, 2)}`
        + `${clear(about.trustworthiness_by_chance ?? NaN) ? `; a map of the same directions with shuffled values has ${fixed(about.trustworthiness_by_chance, 2)}` : ""}. `
        + "It is 1 where all neighbours in the plane are neighbours among the directions (rows of the SAE's decoder), and less the farther down the order of nearness the others come. "
        : "How far neighbours in the plane are neighbours among the directions was not measured. ",
      `${counted(shown, "latent")} ${shown === 1 ? "is" : "are"} shown${clear(about.n_latents ?? NaN) && about.n_latents > about.n_mapped ? `, of which ${count(about.n_mapped)} were placed by t-SNE and the others between their nearest` : ""}. `,
      "Only near points mean something: distances between groups, their size and their place do not."];

    await show();
    return "Map of latents";
  };
})();
