"use strict";
// What all pages share: the data files, the address, making elements, and writing numbers for readers.
// Elements are only ever made by `el` and text nodes: text of the data never becomes markup.

const mammosae = { pages: {} };

// Data. Every file in data/ is `mammosae.data["name"] = JSON;`: scripts, unlike fetch, work from a local folder too.

mammosae.data = {};

mammosae.load = (() => {
  const pending = new Map();
  return (name) => {
    if (!pending.has(name)) {
      pending.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => (name in mammosae.data ? resolve(mammosae.data[name])
          : reject(new Error(`data/${name}.js holds something else`)));
        script.onerror = () => {
          pending.delete(name);
          reject(new Error(`data/${name}.js could not be read`));
        };
        document.head.append(script);
      }));
    }
    return pending.get(name);
  };
})();

// A column as 64-bit floats; what is not known is NaN.
mammosae.column = (values) => Float64Array.from(values, (value) => (value === null ? NaN : value));

// A latents table with one or all of its concepts: {info, size, latent, rate, maximum, mean, byLatent, concepts}.
mammosae.table = (() => {
  const tables = new Map();
  const parts = new Map();

  const base = async (info) => {
    const raw = await mammosae.load(info.file);
    const latent = Int32Array.from(raw.latent);
    return {
      info,
      size: latent.length,
      latent,
      rate: mammosae.column(raw.firing_rate),
      maximum: mammosae.column(raw.max_activation),
      mean: mammosae.column(raw.mean_activation),
      notes: mammosae.byLatent(info, "notes"),
      names: mammosae.byLatent(info, "names"),
      byLatent: new Map(Array.from(latent, (number, row) => [number, row])),
      concepts: {},
    };
  };

  const part = async (table, entry) => {
    const raw = await mammosae.load(entry.file);
    table.concepts[entry.concept] = {
      name: entry.concept,
      n_images: entry.n_images,
      means: raw.class_means.map(mammosae.column),
      scores: raw.scores.map(mammosae.column),
      ranks: raw.ranks.map(mammosae.column),
      precision: mammosae.column(raw.average_precision),
      ablation: mammosae.column(raw.ablation_effect),
      ends: raw.class_mean_low && { low: raw.class_mean_low.map(mammosae.column), high: raw.class_mean_high.map(mammosae.column) },
      evidence: raw.evidence && evidenceOf(raw.evidence),
    };
  };

  // Numbers as columns of floats, words as they are; what has no row is not listed.
  const evidenceOf = (raw) => {
    const words = ["verdict", "reason", "statistic", "place_reason", "covariate", "covariate_kind"];
    return Object.fromEntries(Object.entries(raw).map(([name, values]) => [name, words.includes(name) ? values : mammosae.column(values)]));
  };

  const once = (map, key, make) => {
    if (!map.has(key)) map.set(key, make().catch((error) => { map.delete(key); throw error; }));
    return map.get(key);
  };

  return async (info, concept) => {
    const table = await once(tables, info.file, () => base(info));
    const wanted = info.concepts.filter((entry) => concept === undefined || entry.concept === concept);
    await Promise.all(wanted.map((entry) => once(parts, entry.file, () => part(table, entry))));
    return table;
  };
})();

// The address. "#/latent/layer/encoder/7?concept=Mass" -> {page, parts, params}; every part is percent-encoded.

mammosae.parse = (hash) => {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const decode = (text) => {
    try { return decodeURIComponent(text); } catch { return text; }
  };
  const parts = path.split("/").filter((part) => part !== "").map(decode);
  return { page: parts[0] ?? "", parts: parts.slice(1), params: new URLSearchParams(query) };
};

// Values that are "" or null are left out, so that the plain page has the plain address.
mammosae.address = (parts, params = {}) => {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== null)).toString();
  return `#/${parts.map((part) => encodeURIComponent(part)).join("/")}${query ? `?${query}` : ""}`;
};

mammosae.latentAddress = (info, latent, concept = null) =>
  mammosae.address(["latent", info.layer, info.encoder, latent], { study: info.study ? info.study + 1 : "", concept });

// Writing to the address without a new entry in the history: for filters and sorting.
mammosae.remember = (address) => {
  history.replaceState(null, "", address);
  mammosae.announce();
};

// On the Hub the Space lies in a frame; the outer page's address follows when it is told.
mammosae.announce = () => {
  if (window.parent !== window && location.hostname.endsWith(".hf.space")) {
    window.parent.postMessage({ queryString: "", hash: location.hash }, "https://huggingface.co");
  }
};

// Elements.

mammosae.el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  return mammosae.add(node, ...children);
};

// Adds nodes and texts; what a condition left out (false, null, undefined) is not there.
mammosae.add = (node, ...children) => {
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};

// `long`: the texts are long, so that on a phone the field takes the whole width, and what it cuts stands below.
mammosae.choice = (label, id, options, value, onchange, { long = false } = {}) => {
  const { el } = mammosae;
  const select = el("select", { id, onchange: () => onchange(select.value) },
    options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
  const chosen = options.find(([key]) => key === value)?.[1] ?? "";
  return el("div", { class: long ? "field long" : "field" }, el("label", { for: id }, label), select,
    long && chosen.length > 34 && el("span", { class: "chosen", "aria-hidden": "true" }, chosen));
};

// A box that scrolls sideways where its content is wider, and then says so.
mammosae.scroller = (attributes, ...children) => {
  const { el } = mammosae;
  const hint = el("p", { class: "hint", "aria-hidden": "true", hidden: true }, "Scrolls sideways →");
  const box = el("div", { ...attributes, class: "scroll" }, ...children);
  const watch = new ResizeObserver(() => {
    const wider = box.scrollWidth > box.clientWidth + 1;
    hint.hidden = !wider;
    box.classList.toggle("more", wider);
  });
  const observe = () => [box, ...box.children].forEach((node) => watch.observe(node));
  observe();
  new MutationObserver(observe).observe(box, { childList: true });
  return [hint, box];
};

// A plain table: headings are strings or {text, number, title}; cells are strings or nodes.
mammosae.plainTable = (headings, rows, { caption = null, className = "" } = {}) => {
  const { el } = mammosae;
  const heads = headings.map((heading) => (typeof heading === "string" ? { text: heading } : heading));
  // The caption stands outside of the part that scrolls sideways, so that a phone shows all of it.
  return el("div", { class: "captioned" }, caption && el("p", { class: "caption", "aria-hidden": "true" }, caption),
    mammosae.scroller({ tabindex: 0, role: "region", "aria-label": caption ?? "Table" }, el("table", { class: className },
      el("thead", {}, el("tr", {}, heads.map((head) =>
        el("th", { scope: "col", class: head.number ? "number" : null, title: head.title }, head.text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) =>
        el("td", { class: heads[i].number ? "number" : null }, cell))))))));
};

// Words and numbers.

// For searching: without regard to capitals, accents, and the several ways to write one letter.
mammosae.fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replaceAll("ß", "ss");

mammosae.MISSING = "–";
mammosae.SUPPRESSED = "hidden";

mammosae.readable = (name) => {
  const words = String(name).replaceAll("_", " ");
  return String(name).includes("_") ? words.charAt(0).toUpperCase() + words.slice(1).toLowerCase() : words;
};

// Concepts begin with a capital; encoders keep their names, with the concept they were trained for behind a slash.
mammosae.conceptName = (name) => mammosae.readable(name).replace(/^./, (first) => first.toUpperCase());
mammosae.encoderName = (name) => name.split("/").map((part, i) => (i ? part.split("+").map(mammosae.conceptName).join(", ") : part)).join(" / ");

mammosae.className = (number, count) => (count === 2 ? ["absent", "present"][number] : `class ${number}`);

mammosae.count = (value) => Number(value).toLocaleString("en-US");

// A heading inside a sentence: "Box AP" -> "box AP", "SHA-256" stays.
mammosae.inSentence = (text) => text.replace(/^[A-Z](?![A-Z0-9-])/, (first) => first.toLowerCase());

// "1 latent", "2 latents".
mammosae.counted = (value, noun) => `${mammosae.count(value)} ${noun}${value === 1 ? "" : "s"}`;

mammosae.power = (exponent) =>
  `10${String(exponent).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])}`;

// Three significant digits; very small numbers as powers of ten.
mammosae.number = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return mammosae.MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size >= 1000) text = mammosae.count(Math.round(value));
  else if (size >= 0.001) text = value.toPrecision(3);
  else {
    const [digits, exponent] = value.toExponential(1).split("e");
    text = `${digits} × ${mammosae.power(Number(exponent))}`;
  }
  return text.replace("-", "−");
};

mammosae.plain = (value) => (Number.isInteger(value) ? mammosae.count(value).replace("-", "−") : mammosae.number(value));

mammosae.fixed = (value, places = 3) =>
  (value === null || value === undefined || Number.isNaN(value) ? mammosae.MISSING : value.toFixed(places).replace(/^-(?=0\.?0*$)/, "").replace("-", "−"));

mammosae.signed = (value) => (value > 0 ? `+${mammosae.number(value)}` : mammosae.number(value));

mammosae.percent = (share) => {
  if (share === null || share === undefined || Number.isNaN(share)) return mammosae.MISSING;
  const value = 100 * share;
  if (value === 0 || value === 100) return `${value} %`;
  return `${value >= 10 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : mammosae.number(value)} %`;
};

// It is measured of every latent.
mammosae.firingRate = (share) => (share === 0 ? "never" : Number.isNaN(share) ? mammosae.SUPPRESSED : mammosae.percent(share));

// To three decimals, or to as many as tell the ends apart.
mammosae.interval = (row, name) => {
  const ends = [row[`${name}_low`], row[`${name}_high`]];
  if (ends[0] === null || ends[0] === undefined) return "";
  let places = 3;
  while (places < 6 && ends[0].toFixed(places) === ends[1].toFixed(places)) places += 1;
  return ` [${ends.map((end) => mammosae.fixed(end, places)).join(", ")}]`;
};

// Suppression: the findings hold nothing where fewer than `min_group` patients stand behind a number: in a class, or among those in
// whose images a latent fires. How often latents fire, their class means, scores and ranks are of all of them: what is missing there is hidden.

mammosae.hiddenCount = (concept, number) => concept.n_images[number] === null;
mammosae.hiddenRanks = (concept) => concept.n_images.includes(null);
mammosae.hiddenRank = (concept, row) => Number.isNaN(concept.ranks[concept.ranks.length - 1][row]);
mammosae.hiddenMaximum = (table, row) => table.rate[row] !== 0 && Number.isNaN(table.maximum[row]);
mammosae.hiddenAblation = (table, concept) => table.info.readout === "linear" && concept.means.length === 2;
mammosae.fewerThan = (table) => `fewer than ${mammosae.counted(mammosae.studyOf(table.info).min_group, "patient")}`;

// Rows of localization, interventions and roles name the model, which an encoder of one concept is part of.
mammosae.belongs = (row, info, concept) => row.layer === info.layer && row.model === info.model && row.concept === concept;

mammosae.boxRows = (table, concept) => mammosae.studyOf(table.info).localization
  .filter((row) => row.method === "latent" && mammosae.belongs(row, table.info, concept.name));

mammosae.hiddenBoxes = (table, concept, row) => mammosae.hiddenRank(concept, row)
  || mammosae.boxRows(table, concept).some((one) => one.latent === table.latent[row] && one.average_precision === null);

// Where a study is from, if that says more than its title.
mammosae.placeOf = ({ title, origin }) => (origin.startsWith(title) ? "" : origin);

// Two studies may have one title, and are told apart by where they are from.
mammosae.studyName = (number) => {
  const { studies } = mammosae.data.index;
  const { title } = studies[number];
  const place = mammosae.placeOf(studies[number]);
  return studies.length > 1 ? `${"AB"[number]}: ${title}${place && ` (${place})`}` : title;
};

// A latent that fires in no test image and in no training image: its ranks say nothing.
mammosae.isDead = (table, row) => table.rate[row] === 0
  && Object.values(table.concepts).every((concept) => !concept.means.some((means) => means[row] > 0));

mammosae.studyOf = (info) => mammosae.data.index.studies[info.study];

// Evidence on latents, of findings that have it (docs/evidence.md): what stands in a row's column, and why something is missing.
mammosae.VERDICTS = ["concept", "context", "shortcut", "unclear"];
mammosae.hasEvidence = (info, concept) => info.concepts.some((entry) => entry.concept === concept && entry.evidence);
mammosae.evidence = (concept, row, name) => concept.evidence?.[name][row] ?? (name in { verdict: 0, reason: 0, covariate: 0 } ? null : NaN);
mammosae.hiddenEvidence = (concept, row, name) => {
  const of = (other) => mammosae.evidence(concept, row, other);
  if (Number.isNaN(of("n_tests"))) return false;  // it has no row: the latent does not fire, or nothing may be told of it
  if (name === "place") return of("verdict") === null && !concept.evidence.place_reason[row];
  if (["verdict", "covariate"].includes(name)) return of(name) === null;
  return Number.isNaN(of("auroc"));
};

// An estimate of the evidence with its interval; a dash or "hidden" where it is missing.
mammosae.estimate = (concept, row, name, write = mammosae.fixed) => {
  const value = mammosae.evidence(concept, row, name);
  if (Number.isNaN(value)) return mammosae.hiddenEvidence(concept, row, name) ? mammosae.SUPPRESSED : mammosae.MISSING;
  const ends = [`${name}_low`, `${name}_high`].map((end) => concept.evidence[end]?.[row] ?? NaN);
  return `${write(value)}${ends.some(Number.isNaN) ? "" : ` [${ends.map((end) => mammosae.fixed(end)).join(", ")}]`}`;
};

// The notes, or the names, of a table by latent; Spaces of earlier versions have no names.
mammosae.byLatent = (info, kind) => {
  const known = (info.rows ??= {});
  if (known[kind]) return known[kind];
  const found = (known[kind] = new Map());
  for (const row of mammosae.studyOf(info)[kind] ?? []) {
    if (row.layer !== info.layer || row.encoder !== info.encoder) continue;
    if (found.has(row.latent)) found.get(row.latent).push(row);
    else found.set(row.latent, [row]);
  }
  return found;
};

// How a name was found, its score and chance: no name is shown without.
mammosae.nameScore = (row) => `${row.method} ${mammosae.fixed(row.score, 2)}, chance ${row.chance === null ? "not known" : mammosae.fixed(row.chance, 2)}`;
