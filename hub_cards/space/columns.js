"use strict";
// The columns of the list of latents: what each says of a row, how it is sorted and written, and which are shown.

mammosae.columns = (() => {
  const { el } = mammosae;

  // `of` gives a row's value, `by` what it is sorted by where that is another; `first` is the order that a first click on the heading gives;
  // `more` are columns that are shown on request; `csv` are the columns of a file, by default one called `key` with `of`.
  const all = (state) => {
    const positions = new Map(state.tables.map((info, i) => [info, i]));
    const several = (name) => new Set(state.tables.map((table) => table[name])).size > 1;
    const concept = (table) => table.concepts[state.concept];
    const judged = state.tables.some((info) => mammosae.hasEvidence(info, state.concept));  // then the evidence says more than ranks do
    const always = () => true; // of what is measured of every latent, a missing value is hidden
    const shown = [
      { key: "latent", text: "Latent", first: "up", of: (table, row) => table.latent[row] },
      state.tables.some((info) => mammosae.byLatent(info, "names").size) && {
        key: "called", text: "Name", first: "up", title: "What it is called, with how that was found, its score and chance; a guess. Sorted by q, surest first",
        of: (table, row) => nameOf(table, row)?.q ?? NaN,
        csv: Object.fromEntries([["name", "name"], ["name_method", "method"], ["name_score", "score"], ["name_chance", "chance"], ["name_q", "q"]]
          .map(([title, field]) => [title, (table, row) => nameOf(table, row)?.[field] ?? null])),
        show: (table, row) => {
          const name = nameOf(table, row);
          return name ? [mammosae.readable(name.name), el("span", { class: "reason" }, mammosae.nameScore(name))] : "";
        },
      },
      several("layer") && { key: "layer", text: "Layer", first: "up", wide: true, of: (table) => positions.get(table.info), csv: {} },
      several("encoder") && { key: "encoder", text: "Encoder", first: "up", of: (table) => positions.get(table.info), csv: {} },
      {
        key: "rank", text: "Rank", first: "up", number: true,
        title: `Place among the latents of the encoder by score for the class “${mammosae.className(state.class, state.classes)}”; 1 is best`,
        of: (table, row) => concept(table).ranks[state.class][row],
        hidden: always, write: mammosae.count,
      },
      ...(judged ? evidenceColumns(state, concept) : []),
      {
        key: "score", text: "Score", first: "down", number: true, wide: true, more: judged,
        title: "What the latents are ranked by, in units of activation",
        of: (table, row) => concept(table).scores[state.class][row],
        hidden: always, write: mammosae.signed,
      },
      ...Array.from({ length: state.classes }, (_, number) => ({
        key: `mean${number}`, text: `Mean, ${mammosae.className(number, state.classes)}`, first: "down", number: true, wide: true, more: judged || state.classes > 3,
        csv: { [`mean_${mammosae.className(number, state.classes).replace(" ", "_")}`]: (table, row) => concept(table).means[number][row] },
        title: "Mean activation over all positions of the training images of the class",
        of: (table, row) => concept(table).means[number][row],
        hidden: always, write: mammosae.number,
      })),
      {
        key: "precision", text: "Box AP", first: "down", number: true, csv: { box_average_precision: (table, row) => concept(table).precision[row] },
        title: "Average precision of the latent's boxes against the annotated boxes, 0 to 1; only the best-ranked latents are measured",
        of: (table, row) => concept(table).precision[row],
        hidden: (table, row) => mammosae.hiddenBoxes(table, concept(table), row), write: (value) => mammosae.fixed(value),
      },
      {
        key: "ablation", text: "Ablation effect", first: "down", number: true, wide: true, more: judged,
        csv: { ablation_effect: (table, row) => concept(table).ablation[row] },
        title: "Mean change of the concept's logit over test images with the finding when this latent alone is set to 0; sorted by its size, whatever its sign",
        of: (table, row) => concept(table).ablation[row], by: (table, row) => Math.abs(concept(table).ablation[row]), sorted: "size of the ablation effect",
        hidden: (table) => mammosae.hiddenAblation(table, concept(table)), write: mammosae.signed,
      },
      {
        key: "rate", text: "Fires in", first: "down", number: true, csv: { firing_rate: (table, row) => table.rate[row] }, title: "Share of test images in which it fires anywhere",
        of: (table, row) => table.rate[row], hidden: always, write: mammosae.firingRate,
      },
      {
        key: "maximum", text: "Maximum", first: "down", number: true, wide: true, more: judged, csv: { max_activation: (table, row) => table.maximum[row] }, title: "Largest activation in any test image",
        of: (table, row) => table.maximum[row], hidden: mammosae.hiddenMaximum, write: mammosae.number,
      },
      {
        key: "notes", text: "Notes", first: "down", wide: true, title: "Notes by readers", more: !mammosae.data.index.studies[state.study].notes.length,
        csv: { notes: (table, row) => (table.notes.get(table.latent[row]) ?? []).map((note) => [note.label, note.text].filter(Boolean).join(": ")).join(" | ") },
        of: (table, row) => table.notes.get(table.latent[row])?.length ?? 0,
      },
    ];
    return shown.filter(Boolean);
  };

  const nameOf = (table, row) => table.names.get(table.latent[row])?.[0];  // the findings have the surest first

  // Of findings with evidence alone: the verdict stands beside its numbers, and each sorts.
  const evidenceColumns = (state, concept) => {
    const estimate = (key, text, name, title) => ({
      key, text, first: "down", number: true, wide: true, title,
      csv: Object.fromEntries(["", "_low", "_high"].map((end) => [`${name}${end}`, (table, row) => mammosae.evidence(concept(table), row, `${name}${end}`)])),
      of: (table, row) => mammosae.evidence(concept(table), row, name),
      show: (table, row) => mammosae.estimate(concept(table), row, name),
    });
    const word = (name) => (table, row) => mammosae.evidence(concept(table), row, name)
      ?? (mammosae.hiddenEvidence(concept(table), row, name) ? mammosae.SUPPRESSED : mammosae.MISSING);
    const names = new Map();  // of covariates, in the order of words
    const covariateOrder = (table, row) => {
      const name = mammosae.evidence(concept(table), row, "covariate");
      if (!name) return NaN;
      if (!names.has(name)) {
        const all = new Set(state.tables.flatMap((info) => mammosae.data[info.concepts.find((entry) => entry.concept === state.concept).file]?.evidence?.covariate ?? []));
        [...all].filter(Boolean).sort().forEach((one, i) => names.set(one, i));
      }
      return names.get(name);
    };
    return [
      {
        key: "verdict", text: "Verdict", first: "up", wide: true,
        csv: { verdict: (table, row) => mammosae.evidence(concept(table), row, "verdict"), verdict_reason: (table, row) => mammosae.evidence(concept(table), row, "reason") },
        title: "What the latent stands for by a rule, with the reason; a reason to look, no proof",
        of: (table, row) => {
          const at = mammosae.VERDICTS.indexOf(mammosae.evidence(concept(table), row, "verdict"));
          return at < 0 ? NaN : at;
        },
        show: (table, row) => [word("verdict")(table, row), mammosae.evidence(concept(table), row, "reason")
          && mammosae.el("span", { class: "reason" }, mammosae.evidence(concept(table), row, "reason"))],
      },
      estimate("auroc", "AUROC", "auroc", "AUROC of its maximum or mean over positions in test images, whichever is farther from 0.5, with the 95 % interval, patients as groups"),
      { ...estimate("q", "q", "auroc_q", "That this AUROC is 0.5: p-value after Benjamini and Hochberg over the latents"), first: "up",
        csv: { auroc_q: (table, row) => mammosae.evidence(concept(table), row, "auroc_q") },
        show: (table, row) => mammosae.estimate(concept(table), row, "auroc_q", mammosae.number) },
      estimate("reliance", "Reliance", "reliance", "Share of the logit's variance that goes with what the latent adds to it, with the 95 % interval over patients"),
      { ...estimate("place", "In its boxes", "place", "Share of its activation in the image's own boxes over that in other patients' boxes; 1 by chance; with the 95 % interval over patients"), more: true },
      {
        key: "covariate", text: "Goes with", first: "up", wide: true, more: true,
        csv: Object.fromEntries(["covariate", "covariate_r", "covariate_q"].map((name) => [name, (table, row) => mammosae.evidence(concept(table), row, name)])), title: "What else of the images it goes with most, with the correlation of ranks and its q",
        of: covariateOrder,
        show: (table, row) => {
          const name = word("covariate")(table, row);
          const r = mammosae.evidence(concept(table), row, "covariate_r");
          return Number.isNaN(r) ? name || mammosae.MISSING : `${name} (r ${mammosae.fixed(r, 2)}, q ${mammosae.number(mammosae.evidence(concept(table), row, "covariate_q"))})`;
        },
      },
    ];
  };

  const FIXED = ["latent", "layer", "encoder"];  // without these a row cannot be told from another

  // What the address asks for, or what is worth its room: a choice by hand holds on a phone too, where `wide` columns are left out.
  const shown = (state) => {
    const every = all(state);
    if (!state.columns) return every.filter((column) => !column.more);
    const wanted = state.columns === "all" ? every.map((column) => column.key) : state.columns.split(",");
    return every.filter((column) => FIXED.includes(column.key) || wanted.includes(column.key)).map((column) => ({ ...column, wide: false }));
  };

  // The choice as the address has it, "" for the usual one.
  const named = (state, keys) => {
    const own = (columns) => columns.map((column) => column.key).filter((key) => !FIXED.includes(key)).join();
    const every = all(state);
    const chosen = own(every.filter((column) => keys.includes(column.key)));
    return chosen === own(every.filter((column) => !column.more)) ? "" : chosen || "none";
  };

  // A list of boxes to tick, folded.
  const picker = (state, onchange) => {
    const now = shown(state).map((column) => column.key);
    const options = all(state).filter((column) => !FIXED.includes(column.key));
    const boxes = options.map((column) => el("div", { class: "field check" },
      el("input", { type: "checkbox", id: `column-${column.key}`, checked: now.includes(column.key), onchange: () => onchange(named(state,
        options.map((one) => one.key).filter((key) => document.getElementById(`column-${key}`).checked))) }),
      el("label", { for: `column-${column.key}`, title: column.title }, column.text)));
    return el("fieldset", {}, el("legend", { class: "sr" }, "Columns"), boxes,
      el("button", { type: "button", id: "columns-all", onclick: () => onchange("all") }, "All"),
      el("button", { type: "button", id: "columns-usual", onclick: () => onchange("") }, "Usual"));
  };

  // The rows as a file, with the columns that are shown and what tells one row from another.
  const asCsv = (state, tables, rows) => {
    const place = { layer: (table) => table.info.layer, encoder: (table) => table.info.encoder, latent: (table, row) => table.latent[row],
      concept: () => state.concept, class: () => state.class };
    const named = Object.assign({}, place, ...shown(state).map((column) => column.csv ?? { [column.key]: column.of }));
    return mammosae.csv(Object.keys(named), rows.map(([t, row]) => Object.values(named).map((of) => of(tables[t], row))));
  };

  return { all, shown, picker, asCsv };
})();
