"use strict";
// Two studies, or two encoders of one study, side by side: rank correlation, shared top latents, a scatter, box AP.

mammosae.statistics = (() => {
  // Ranks from 1, equal values sharing the mean of their places.
  const midranks = (values) => {
    const order = Array.from(values, (_, i) => i).sort((one, other) => values[one] - values[other]);
    const ranks = new Float64Array(values.length);
    for (let start = 0; start < order.length;) {
      let end = start;
      while (end + 1 < order.length && values[order[end + 1]] === values[order[start]]) end += 1;
      for (let i = start; i <= end; i += 1) ranks[order[i]] = (start + end) / 2 + 1;
      start = end + 1;
    }
    return ranks;
  };

  // Spearman's rank correlation; NaN for fewer than 2 pairs or values that are all equal.
  const spearman = (xs, ys) => {
    const [a, b] = [midranks(xs), midranks(ys)];
    const middle = (xs.length + 1) / 2;
    let [ab, aa, bb] = [0, 0, 0];
    for (let i = 0; i < a.length; i += 1) {
      ab += (a[i] - middle) * (b[i] - middle);
      aa += (a[i] - middle) ** 2;
      bb += (b[i] - middle) ** 2;
    }
    return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : NaN;
  };

  return { spearman };
})();

mammosae.pages.compare = (() => {
  const { el, charts, number, fixed, firingRate, conceptName, encoderName, className, count } = mammosae;

  const VALUES = {
    score: ["Score", (table, concept, cls, row) => table.concepts[concept].scores[cls][row]],
    mean: ["Mean activation in the class", (table, concept, cls, row) => table.concepts[concept].means[cls][row]],
    rate: ["Share of test images in which it fires", (table, concept, cls, row) => table.rate[row]],
  };

  // Of fewer latents a correlation says nothing; nor does a share of the best where these are most of all.
  const FEW = 10;

  const key = (info) => [info.study + 1, info.layer, info.encoder].map(encodeURIComponent).join("/");
  const conceptsOf = (info) => info.concepts.map((entry) => entry.concept);
  const shared = (left, right) => conceptsOf(left).filter((concept) => conceptsOf(right).includes(concept));
  const sameSae = (left, right) => left.sae !== null && left.sae === right.sae;

  // The usual pair: the same encoder of two studies, or two encoders of one layer with a concept and an SAE in common.
  const usual = (tables) => {
    const first = mammosae.data.index.studies[0];
    const own = [...tables].sort((one, other) => (other.layer === first.primary) - (one.layer === first.primary));
    let best = null;
    for (const left of own) {
      for (const right of own) {
        if (left === right || left.study > right.study || !shared(left, right).length) continue;
        const worth = 8 * (left.study !== right.study) + 4 * sameSae(left, right) + 2 * (left.layer === right.layer) + (left.encoder === right.encoder);
        if (best === null || worth > best.worth) best = { left, right, worth };
      }
    }
    return best;
  };

  const read = (params, tables) => {
    const fallback = usual(tables);
    if (fallback === null) return null;
    const find = (name) => tables.find((info) => key(info) === params.get(name));
    const left = find("a") ?? fallback.left;
    let right = find("b") ?? fallback.right;
    if (!shared(left, right).length || left === right) right = tables.find((info) => info !== left && shared(left, info).length) ?? fallback.right;
    const concepts = shared(left, right);
    const concept = concepts.includes(params.get("concept")) ? params.get("concept") : concepts[0];
    if (concept === undefined) return { ...read(new URLSearchParams(), tables) };
    const classes = left.concepts.find((entry) => entry.concept === concept).n_images.length;
    const whole = (name, usual) => (/^\d+$/.test(params.get(name) ?? "") ? Number(params.get(name)) : usual);
    return {
      left, right, concept, concepts, classes,
      class: Math.min(classes - 1, whole("class", classes - 1)),
      top: Math.max(1, whole("top", 10)),
      value: params.get("value") in VALUES ? params.get("value") : "score",
    };
  };

  const address = (state) => mammosae.address(["compare"], {
    a: key(state.left), b: key(state.right), concept: state.concept,
    class: state.class === state.classes - 1 ? "" : state.class, top: state.top === 10 ? "" : state.top, value: state.value === "score" ? "" : state.value,
  });

  // The rows of both tables for the latents that both have and that fire in the training images of either.
  const pairs = (left, right, concept) => {
    const fires = (table, row) => table.concepts[concept].means.some((means) => means[row] !== 0);
    const rows = [];
    left.byLatent.forEach((row, latent) => {
      const other = right.byLatent.get(latent);
      if (other !== undefined && (fires(left, row) || fires(right, other))) rows.push([row, other]);
    });
    return rows;
  };

  const best = (table, concept, cls, column, rows, top) => {
    const ranks = table.concepts[concept].ranks[cls];
    return new Set(rows.map((_, i) => i).filter((i) => ranks[rows[i][column]] > 0).sort((one, other) => ranks[rows[one][column]] - ranks[rows[other][column]]).slice(0, top));
  };

  const bestBoxes = (info, table, concept) => {
    const rows = mammosae.boxRows(table, table.concepts[concept]);
    const first = rows.filter((row) => row.threshold === rows[0].threshold && row.iou_threshold === rows[0].iou_threshold && row.average_precision !== null)
      .sort((one, other) => other.average_precision - one.average_precision || one.rank - other.rank);
    if (!rows.length) return ["", mammosae.MISSING];
    return first.length ? [el("a", { href: mammosae.latentAddress(info, first[0].latent, concept) }, `latent ${first[0].latent}`), fixed(first[0].average_precision)]
      : ["", mammosae.SUPPRESSED];
  };

  const auroc = (info, concept, variant) => {
    const row = mammosae.studyOf(info).reconstruction.find((one) => mammosae.belongs(one, info, concept) && one.variant === variant);
    if (!row) return mammosae.MISSING;
    return row.auroc === null ? mammosae.SUPPRESSED : fixed(row.auroc) + mammosae.interval(row, "auroc");
  };

  const name = (info) => {
    const { studies } = mammosae.data.index;
    return `${studies.length > 1 ? `${"AB"[info.study]}: ` : ""}${encoderName(info.encoder)}, ${info.layer}`;
  };

  const sideBySide = (state, left, right) => {
    const sides = [[state.left, left], [state.right, right]];
    const rows = state.concepts.map((concept) => [
      conceptName(concept), ...sides.flatMap(([info, table]) => {
        const [latent, precision] = bestBoxes(info, table, concept);
        return [auroc(info, concept, "without_sae"), el("span", {}, precision, " ", el("span", { class: "small" }, latent))];
      }),
    ]);
    return mammosae.plainTable(["Concept", ...["left", "right"].flatMap((side) => [
      { text: `AUROC, ${side}`, number: true, title: "Classifier without the SAE, test images" },
      { text: `Best box AP, ${side}`, number: true }])],
    rows, { caption: "Every concept that both have: AUROC of the unmodified classifier on test images, and the best average precision of a single latent's boxes" });
  };

  const matched = (state, left, right, redraw) => {
    const { concept, class: cls } = state;
    const [title, of] = VALUES[state.value];
    const fired = pairs(left, right, concept);
    const rows = fired.filter(([row, other]) => !Number.isNaN(of(left, concept, cls, row)) && !Number.isNaN(of(right, concept, cls, other)));
    const xs = rows.map(([row]) => of(left, concept, cls, row));
    const ys = rows.map(([, row]) => of(right, concept, cls, row));
    if (rows.length < 2) {
      return [el("p", { class: "missing" }, fired.length < 2 ? "Fewer than two latents fire in the training images of either."
        : "These numbers are hidden, because too few patients stand behind a class of one of the two.")];
    }
    const top = Math.min(state.top, rows.length);
    const ranked = !mammosae.hiddenRanks(left.concepts[concept]) && !mammosae.hiddenRanks(right.concepts[concept]);
    const [inLeft, inRight] = ranked ? [best(left, concept, cls, 0, rows, top), best(right, concept, cls, 1, rows, top)] : [new Set(), new Set()];
    const marked = new Map();
    for (const i of inLeft) marked.set(i, inRight.has(i) ? "both" : "left");
    for (const i of inRight) if (!inLeft.has(i)) marked.set(i, "right");
    const both = [...marked].filter(([, kind]) => kind === "both").length;
    const few = rows.length < FEW ? `Too few latents to tell: only ${count(rows.length)} are compared` : null;
    const most = 2 * top > rows.length ? `Too few latents to tell: ${count(top)} of ${count(rows.length)} are looked at` : null;
    const caution = (id, text) => text && el("dd", { class: "caution", id }, text);
    const correlation = mammosae.statistics.spearman(xs, ys);
    const latent = (i) => left.latent[rows[i][0]];
    const picture = charts.scatter(xs, ys, marked, {
      xTitle: `${title}, left`, yTitle: `${title}, right`,
      label: `${title} of ${rows.length} latents: left across, right up. Rank correlation ${fixed(correlation)}.`,
      onpick: (i, go) => {
        if (go) location.hash = mammosae.latentAddress(state.left, latent(i), concept);
        return `Latent ${latent(i)}: left ${number(xs[i])}, right ${number(ys[i])}`;
      },
    });
    redraw.push(picture.draw);
    const order = [...marked.keys()].sort((one, other) =>
      left.concepts[concept].ranks[cls][rows[one][0]] - left.concepts[concept].ranks[cls][rows[other][0]]);
    const words = { both: "both", left: "left", right: "right" };
    return [
      el("dl", { class: "facts" },
        el("div", {}, el("dt", {}, "Rank correlation"), el("dd", { id: "correlation", "data-value": correlation }, fixed(correlation)),
          caution("few-correlation", few),
          el("dd", { class: "small" }, `Spearman's, of ${mammosae.inSentence(title)}: 1 same order, 0 none, −1 reversed`)),
        ranked && el("div", {}, el("dt", {}, `Shared among the ${top} best`), el("dd", { id: "shared", "data-value": both }, `${both} of ${top}`),
          caution("few-shared", few ?? most),
          el("dd", { class: "small" }, `${number((top * top) / rows.length)} expected by chance`)),
        el("div", {}, el("dt", {}, "Latents compared"), el("dd", { id: "compared", "data-value": rows.length }, count(rows.length)),
          el("dd", { class: "small" }, "that fire in the training images of either"))),
      el("div", { class: "columns" },
        el("figure", {}, picture.node, el("figcaption", {},
          el("span", { class: "key both" }, "among the best of both"), " ", el("span", { class: "key activate" }, "of the left only"), " ",
          el("span", { class: "key deactivate" }, "of the right only"), " ", el("span", { class: "key random" }, "other latents"), " Dashed: equal in both. A click opens the latent.")),
        ranked && mammosae.plainTable(["Latent", { text: "Rank, left", number: true }, { text: "Rank, right", number: true }, { text: "Fires in, left", number: true },
          { text: "Fires in, right", number: true }, "Best of"],
        order.map((i) => {
          const [row, other] = rows[i];
          return [el("a", { href: mammosae.latentAddress(state.left, latent(i), concept) }, String(latent(i))),
            count(left.concepts[concept].ranks[cls][row]), count(right.concepts[concept].ranks[cls][other]), firingRate(left.rate[row]), firingRate(right.rate[other]), words[marked.get(i)]];
        }), { caption: `The ${top} best of each for the class “${className(cls, state.classes)}”` })),
    ];
  };

  return async (root, { params }) => {
    const { studies } = mammosae.data.index;
    const tables = studies.flatMap((study) => study.tables);
    mammosae.add(root, el("h1", {}, "Compare"));
    let state = read(params, tables);
    if (state === null) {
      mammosae.add(root, el("p", { class: "missing" }, "There is nothing to compare: these findings hold one encoder at one layer. Build the page with a second study (mammosae publish space … --compare OTHER)."));
      return "Compare";
    }
    const form = el("form", { class: "filters fields", "aria-label": "Choose what to compare", onsubmit: (event) => event.preventDefault() });
    const box = el("div", { "aria-live": "polite" });
    let redraw = [];
    mammosae.add(root,
      el("p", { class: "lead" }, studies.length > 1
        ? "Do the same latents stand out in both studies, and do they localize as well? Agreement on new images, or with a new classifier, is what a replication looks for."
        : "Do the same latents stand out in both encoders? Only one study is here; two encoders of it can be compared."),
      studies.length > 1 && el("ul", { class: "sides" }, studies.map((study, i) => el("li", {}, el("b", {}, i ? "B" : "A"), ` ${study.title} `,
        el("span", { class: "small" }, mammosae.placeOf(study))))),
      form, box);

    const change = (values) => {
      const next = { ...state, ...values };
      state = read(mammosae.parse(address({ ...next, classes: NaN })).params, tables);
      mammosae.remember(address(state));
      filters();
      return show();
    };
    const filters = () => {
      const focused = document.activeElement?.id;
      const options = (skip) => tables.filter((info) => info !== skip).map((info) => [key(info), name(info)]);
      const pick = (value) => tables.find((info) => key(info) === value);
      form.replaceChildren(
        mammosae.choice("Left", "left", options(null).filter(([value]) => tables.some((other) => key(other) !== value && shared(other, pick(value)).length)),
          key(state.left), (value) => change({ left: pick(value) }), { long: true }),
        mammosae.choice("Right", "right", options(state.left).filter(([value]) => shared(state.left, pick(value)).length), key(state.right),
          (value) => change({ right: pick(value) }), { long: true }),
        mammosae.choice("Concept", "concept", state.concepts.map((one) => [one, conceptName(one)]), state.concept, (concept) => change({ concept, class: 99 }), { long: true }),
        mammosae.choice("Class", "class", Array.from({ length: state.classes }, (_, i) => [String(i), className(i, state.classes)]), String(state.class),
          (value) => change({ class: Number(value) })),
        mammosae.choice("Compare by", "value", Object.entries(VALUES).map(([value, [text]]) => [value, text]), state.value, (value) => change({ value }), { long: true }),
        el("div", { class: "field" }, el("label", { for: "top" }, "Best latents looked at"),
          el("input", { id: "top", type: "number", min: 1, max: 10000, value: state.top, onchange: (event) => change({ top: Math.max(1, Math.round(Number(event.target.value)) || 10) }) })));
      if (focused) document.getElementById(focused)?.focus();
    };
    const show = async () => {
      const wanted = state;
      box.setAttribute("aria-busy", "true");
      const [left, right] = await Promise.all([mammosae.table(wanted.left), mammosae.table(wanted.right)]);
      if (wanted !== state) return;  // overtaken by a later choice
      redraw = [];
      const scores = [state.left, state.right].map((info) => mammosae.studyOf(info).config.analysis?.score);
      let parts;
      if (!sameSae(state.left, state.right)) {
        parts = [el("p", { class: "notice", id: "different" }, "The two read different SAEs, so that equal latent numbers mean different latents: latents are not compared by number. ",
          "mammosae compare can match them by their decoder directions when it is given both SAEs.")];
      } else if (scores[0] !== scores[1]) {
        parts = [el("p", { class: "notice", id: "different" }, `One study ranks its latents by ${scores[0]}, the other by ${scores[1]}: their scores and ranks are not comparable.`)];
      } else {
        parts = matched(state, left, right, redraw);
      }
      box.replaceChildren(...parts, el("h2", {}, "How well they do"), sideBySide(state, left, right));
      redraw.forEach((draw) => draw());
      box.setAttribute("aria-busy", "false");
    };
    mammosae.redraw = () => redraw.forEach((draw) => draw());
    filters();
    await show();
    return "Compare";
  };
})();
