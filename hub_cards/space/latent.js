"use strict";
// The page of one latent: how often it fires, how it answers to each concept, its place in ranking and sweep, names and notes.

mammosae.pages.latent = (() => {
  const { el, charts, number, fixed, percent, firingRate, signed, conceptName, encoderName, className, count, counted } = mammosae;

  // A number, or the word for one that was suppressed.
  const or = (hidden, value, write) => (value === null || Number.isNaN(value) ? (hidden ? mammosae.SUPPRESSED : mammosae.MISSING) : write(value));

  const fact = (term, value, explanation) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, value), explanation && el("dd", { class: "small" }, explanation));

  const figure = (picture, ...caption) => el("figure", {}, picture, el("figcaption", {}, ...caption));

  // The share of live latents that fire in fewer test images, and how many never fire.
  const density = (table, row) => {
    const rates = Array.from(table.rate).filter((rate) => rate > 0);
    const own = table.rate[row];
    const dead = Array.from(table.rate).filter((rate) => rate === 0).length;
    const silent = `${count(dead)} of ${counted(table.size, "latent")} never fire.`;
    if (Number.isNaN(own)) return `In how many test images it fires is hidden: it does, or does not, in ${mammosae.fewerThan(table)}. ${silent}`;
    if (!(own > 0)) return `It fires in no test image. ${silent}`;
    const fewer = rates.filter((rate) => rate < own).length;
    const others = rates.length - 1;
    const share = others > 0 ? ` That is more often than ${percent(fewer / others)} (${count(fewer)} of ${count(others)}) of the other latents that fire at all.` : "";
    return `It fires in ${percent(own)} of the test images.${share} ${silent}`;
  };

  // The smallest rank over the classes: the group of k holds the union of the k best latents of every class.
  const entry = (concept, row) => {
    const ranks = concept.ranks.map((ranks) => ranks[row]);
    const best = Math.min(...ranks);
    return { rank: best, class: ranks.indexOf(best) };
  };

  // The interval of a class's mean, of findings that have it.
  const meanEnds = (concept, cls, row) => {
    const ends = ["low", "high"].map((end) => concept.ends?.[end][cls][row] ?? NaN);
    return ends.some(Number.isNaN) ? null : el("span", { class: "small" }, ` [${ends.map(number).join(", ")}]`);
  };

  const classBars = (concept, row) => {
    const means = concept.means.map((means) => means[row]);
    const top = Math.max(...means.filter((mean) => !Number.isNaN(mean)), 0);
    return el("div", { class: "captioned" }, el("p", { class: "caption" }, "Mean activation by class, over all positions of the training images"),
      mammosae.scroller({ tabindex: 0, role: "region", "aria-label": `Mean activation by class: ${conceptName(concept.name)}` }, el("table", { class: "bars" },
      el("thead", {}, el("tr", {}, ["Class", "Training images", "Mean activation", "Score", "Rank"].map((text, i) =>
        el("th", { scope: "col", class: i ? "number" : null }, text)))),
      el("tbody", {}, means.map((mean, i) => {
        const hidden = mammosae.hiddenCount(concept, i);
        const width = top > 0 && mean > 0 ? Math.max(1, Math.round((100 * mean) / top)) : 0;
        return el("tr", {},
          el("th", { scope: "row" }, className(i, means.length)),
          el("td", { class: "number" }, hidden ? mammosae.SUPPRESSED : count(concept.n_images[i])),
          el("td", { class: "number withbar" },
            el("progress", { max: 100, value: width, "aria-hidden": "true", class: i === means.length - 1 ? "present" : null }),
            el("span", {}, or(true, mean, number), meanEnds(concept, i, row))),
          el("td", { class: "number" }, or(true, concept.scores[i][row], signed)),
          el("td", { class: "number" }, or(true, concept.ranks[i][row], count)));
      })))));
  };

  const boxes = (table, concept, row) => {
    const rows = mammosae.boxRows(table, concept).filter((one) => one.latent === table.latent[row]);
    if (!rows.length && mammosae.hiddenRank(concept, row)) return el("p", { class: "missing" }, "Whether its boxes were measured is hidden with its rank.");
    if (!rows.length) {
      return el("p", { class: "missing" }, "Its boxes were not measured: only the best-ranked latents of the class with the finding are compared with the annotated boxes.");
    }
    return mammosae.plainTable(
      ["Part of the map kept", { text: "Overlap asked (IoU)", number: true }, { text: "Box AP", number: true },
        { text: "Boxes drawn", number: true }, { text: "Boxes annotated", number: true }, { text: "Test images", number: true }],
      rows.map((row) => [row.threshold, String(row.iou_threshold), or(true, row.average_precision, fixed),
        ...[row.n_predictions, row.n_boxes, row.n_images].map((value) => or(true, value, count))]),
      { caption: "Does it fire where the finding was marked? Average precision of its boxes, 0 to 1" });
  };

  // Behind an inner layer networks are run, of a large study on a sample.
  const ofSample = (study, info) => {
    const n = study.config.analysis?.inner_patients, of = study.data.splits.find((one) => one.split === "test")?.n_patients;
    return info.readout === "network" && n && n < of ? ` Run on the images of ${count(n)} of ${count(of)} test patients, drawn at random.` : "";
  };

  const sweepPart = (study, info, concept, row) => {
    const rows = study.interventions.filter((one) => mammosae.belongs(one, info, concept.name) && !one.error_term);
    const place = entry(concept, row);
    if (!rows.length) return el("p", { class: "missing" }, "No sweep was run for this concept.");
    if (rows.every((one) => one.auroc === null)) return el("p", { class: "missing" }, "The sweep is hidden, because too few patients stand behind it.");
    const ks = [...new Set(rows.map((one) => one.k))].sort((one, other) => one - other);
    const enters = ks.find((k) => k >= place.rank) ?? null;
    const best = `Its best rank is ${count(place.rank)} (class “${className(place.class, concept.ranks.length)}”)`;
    const at = (mode) => rows.find((one) => one.mode === mode && one.k === enters);
    const [kept, silenced] = [at("activate"), at("deactivate")];
    const value = (one) => or(true, one.auroc, fixed) + mammosae.interval(one, "auroc");
    const random = (one) => (one.random_auroc_mean === null ? "" : ` (random groups: ${fixed(one.random_auroc_mean)})`);
    return figure(
      charts.sweep(rows, enters, `${conceptName(concept.name)}: AUROC by k, group kept and group silenced`
        + (enters === null ? "" : `; this latent is in the group from k = ${enters}`)),
      el("span", { class: "enters" }, enters === null
        ? `${best}: it is in no group of the sweep, whose largest k is ${count(ks[ks.length - 1])}.`
        : `${best}: it enters the group at k = ${count(enters)} (vertical line).`
          + (kept ? ` With only that group kept, the AUROC is ${value(kept)}${random(kept)}.` : "")
          + (silenced ? ` With that group silenced, it is ${value(silenced)}${random(silenced)}.` : ""), ofSample(study, info)),
      el("span", { class: "keys" }, el("span", { class: "key activate" }, "group kept"), el("span", { class: "key deactivate" }, "group silenced"),
        el("span", { class: "key random" }, "random group of the same size, for each"), el("span", { class: "key chance" }, "guessing")));
  };

  // What the findings know of the latent for a concept; its verdict never without these numbers.
  const evidencePart = (concept, row) => {
    const of = (name) => mammosae.evidence(concept, row, name);
    if (!concept.evidence) return null;
    if (Number.isNaN(of("n_tests"))) return el("p", { class: "missing" }, "There is no evidence on it: it fires in no test image, or in too few patients.");
    const word = (name) => of(name) ?? mammosae.SUPPRESSED;
    const estimate = (name, write) => mammosae.estimate(concept, row, name, write);
    return el("dl", { class: "facts evidence" },
      fact("Verdict by a rule", word("verdict"), `${of("reason") ?? "too few patients stand behind it"}; a reason to look, no proof`),
      fact("AUROC in test images", estimate("auroc"), `of its ${concept.evidence.statistic[row] ?? "maximum or mean"} over positions; 0.5 is guessing`),
      fact("q", estimate("auroc_q", number), `that this is 0.5, after Benjamini and Hochberg over ${counted(of("n_tests"), "latent")}`),
      fact("Reliance", estimate("reliance"), "share of the logit's variance that goes with what it adds to the logit"),
      fact("In its boxes", estimate("place"), concept.evidence.place_reason[row] || "activation in the image's own boxes over that in other patients'; 1 by chance"),
      fact("Goes with", word("covariate") || mammosae.MISSING, Number.isNaN(of("covariate_r")) ? "of what is recorded of the images"
        : `correlation of ranks ${fixed(of("covariate_r"), 2)}, q ${number(of("covariate_q"))}${concept.evidence.covariate_kind[row] ? `; of the ${concept.evidence.covariate_kind[row]}` : ""}`));
  };

  const conceptPart = (study, table, concept, row, chosen, details) => {
    const { info } = table;
    const latent = table.latent[row];
    const last = concept.ranks.length - 1;
    const role = study.roles.find((one) => mammosae.belongs(one, info, concept.name) && one.latent === latent);
    const named = role && role.role !== "unclear";
    const ablation = concept.ablation[row];
    const rank = concept.ranks[last][row];
    return el("section", { class: "concept", id: `concept-${concept.name}`, "data-concept": concept.name },
      el("h2", {}, conceptName(concept.name), named && el("span", { class: "badge" }, ["concept", "background"].includes(role.role) ? `${role.role} latent` : role.role),
        chosen && el("span", { class: "sr" }, " (the concept of the list you came from)")),
      role && el("p", {}, `${named ? "Role" : "No role (unclear)"}: ${role.evidence}.`),
      el("dl", { class: "facts" },
        fact(`Rank, ${className(last, last + 1)}`, or(true, rank, (value) => `${count(value)} of ${count(table.size)}`),
          mammosae.isDead(table, row) ? "says nothing: the latent never fires, and dead latents are ranked by their number" : "by score; 1 is best"),
        fact("Box AP", or(mammosae.hiddenBoxes(table, concept, row), concept.precision[row], fixed), "0 to 1, at the study's first threshold and overlap"),
        fact("Effect of ablation", or(mammosae.hiddenAblation(table, concept), ablation, signed), info.readout === "linear"
          ? "mean change of the logit in test images with the finding, when it alone is set to 0" : "not measured at inner layers")),
      evidencePart(concept, row),
      el("div", { class: "columns" },
        el("div", {}, classBars(concept, row)),
        el("div", {}, boxes(table, concept, row)),
        mammosae.hiddenRank(concept, row)
          ? el("p", { class: "missing" }, mammosae.hiddenRanks(concept)
            ? `The ranking is hidden, because ${mammosae.fewerThan(table)} stand behind a class, and with it the place in the sweep.`
            : `The rank is hidden, because the latent fires in ${mammosae.fewerThan(table)} of a class, and with it the place in the sweep.`)
          : [el("div", {}, figure(
            charts.ranking(concept.scores[last], concept.ranks[last], row, `Score by rank for ${conceptName(concept.name)}; this latent has rank ${rank}`),
            `Score of every latent by rank for the class “${className(last, last + 1)}”. The dot is this latent.`)),
          el("div", {}, sweepPart(study, info, concept, row))],
        details && mammosae.around.histogram(concept, details)));
  };

  // What it is called, each name with its score and chance; numbers that a method has not are left out.
  const nameList = (names) => {
    const estimate = (row, name, low = `${name}_low`, high = `${name}_high`) => (row[name] === null ? mammosae.MISSING
      : fixed(row[name], 2) + (row[low] === null ? "" : ` [${fixed(row[low], 2)}, ${fixed(row[high], 2)}]`));
    const all = [
      ["Name", (row) => mammosae.readable(row.name)],
      ["Found by", (row) => [row.method, row.model, row.prompt_version && `prompt ${row.prompt_version}`].filter(Boolean).join(", ")],
      ["Score", (row) => estimate(row, "score", "low", "high")],
      ["Chance", (row) => (row.chance === null ? mammosae.MISSING : fixed(row.chance, 2))],
      ["q", (row) => (row.q === null ? mammosae.MISSING : number(row.q))],
      ["Images", (row) => (row.n ? count(row.n) : mammosae.MISSING)],
      ["AUROC in other images", (row) => estimate(row, "check_auroc", "check_low", "check_high"), "check_auroc"],
      ["Detection (chance 0.5)", (row) => estimate(row, "detection"), "detection"],
      ["Judge", (row) => row.judge ?? mammosae.MISSING, "judge"],
    ].filter(([, , name]) => !name || names.some((row) => row[name] !== null && row[name] !== ""));
    return [el("p", {}, "A name is a guess about what the latent stands for, no proof that it is the cause of anything. Score: in the unit of its method, by labels the share of the latent's strongest images, one of each patient, that have it, with the 95 % interval."),
      mammosae.plainTable(all.map(([text], i) => (i < 2 || text === "Judge" ? text : { text, number: true })), names.map((row) => all.map(([, of]) => of(row))), { caption: null })];
  };

  const elsewhere = async (study, table, latent) => {
    const others = study.tables.filter((info) => info !== table.info && info.layer === table.info.layer && info.sae !== null && info.sae === table.info.sae);
    if (!others.length) return null;
    const rows = [];
    for (const info of others) {
      const other = await mammosae.table(info);
      const row = other.byLatent.get(latent);
      if (row === undefined) continue;
      for (const concept of Object.values(other.concepts)) {
        const last = concept.ranks.length - 1;
        rows.push([el("a", { href: mammosae.latentAddress(info, latent) }, encoderName(info.encoder)), firingRate(other.rate[row]), conceptName(concept.name),
          or(true, concept.ranks[last][row], count), fixed(concept.precision[row])]);
      }
    }
    return [el("h2", {}, "The same latent in other encoders"),
      el("p", {}, "These encoders are read through the same SAE, so that the number means the same latent."),
      mammosae.plainTable(["Encoder", { text: "Fires in", number: true }, "Concept", { text: "Rank", number: true }, { text: "Box AP", number: true }],
        rows, { caption: null })];
  };

  const neighbours = (study, info, latent, table) => {
    const { listed } = mammosae;
    const at = listed.order.findIndex(([one, number]) => one === info && number === latent);
    const row = table.byLatent.get(latent);
    const order = at >= 0 ? listed.order : Array.from(table.latent, (number) => [info, number]);
    const place = at >= 0 ? at : row;
    const link = (step, id, rel) => {
      const next = order[place + step];
      const text = next && (step < 0 ? `← latent ${next[1]}` : `latent ${next[1]} →`);
      return next
        ? el("a", { href: mammosae.latentAddress(next[0], next[1], at >= 0 ? listed.concept : null), id, rel, "aria-label": `${rel === "prev" ? "Previous" : "Next"}: latent ${next[1]}` }, text)
        : el("span", {});
    };
    return el("nav", { class: "neighbours", "aria-label": "Neighbouring latents" },
      el("a", { href: at >= 0 ? listed.address : mammosae.address([], { study: info.study ? info.study + 1 : "" }), id: "back" }, "All latents"),
      link(-1, "previous", "prev"), el("span", { class: "small" }, at >= 0 ? `${count(at + 1)} of ${count(order.length)} in the list` : "by number"), link(1, "next", "next"));
  };

  return async (root, { parts, params }) => {
    const index = mammosae.data.index;
    const study = index.studies[(Number(params.get("study")) || 1) - 1];
    const info = study?.tables.find((table) => table.layer === parts[0] && table.encoder === parts[1]);
    const table = info && await mammosae.table(info);
    const row = /^\d+$/.test(parts[2] ?? "") ? table?.byLatent.get(Number(parts[2])) : undefined;
    if (row === undefined) {
      mammosae.add(root, el("h1", {}, "There is no such latent"),
        el("p", {}, `The address names layer “${parts[0] ?? ""}”, encoder “${parts[1] ?? ""}”, latent “${parts[2] ?? ""}”, which these findings do not hold. `,
          el("a", { href: "#/" }, "All latents")));
      return;
    }
    const latent = table.latent[row];
    const wanted = params.get("concept");
    // The concept that was asked for comes first.
    const concepts = info.concepts.map((one) => table.concepts[one.concept]).sort((one, other) => (other.name === wanted) - (one.name === wanted));
    const notes = table.notes.get(latent) ?? [];
    const names = table.names.get(latent) ?? [];
    const details = await mammosae.around.details(table, latent);
    const beside = details === null ? [] : mammosae.around.neighbours(table, details.neighbours);
    const pictures = mammosae.gallery(study, table, latent);
    mammosae.add(root,
      neighbours(study, info, latent, table),
      el("h1", {}, `Latent ${latent}`),
      el("p", { class: "where" }, `Encoder ${encoderName(info.encoder)} · layer ${info.layer} `, el("code", {}, info.hook_name),
        study.maps?.[info.layer] && table.rate[row] !== 0 && [" · ", el("a", { href: mammosae.address(["map"], { study: info.study ? info.study + 1 : "", layer: info.layer, encoder: info.encoder, concept: wanted, latent }), id: "on-map" }, "on the map")],
        index.studies.length > 1 ? ` · ${mammosae.studyName(info.study)}` : ""),
      names.length > 0 && el("p", { id: "called" }, "Called ", el("b", {}, mammosae.readable(names[0].name)), ` (${mammosae.nameScore(names[0])})`),
      el("dl", { class: "facts" },
        fact("Fires in", firingRate(table.rate[row]), "share of the test images, anywhere in the image"),
        fact("Maximum", or(mammosae.hiddenMaximum(table, row), table.maximum[row], number), "largest activation in any test image"),
        fact("Mean", or(true, table.mean[row], number), "over all positions of all test images"),
        fact("Notes", count(notes.length), notes.length ? "by readers, at the end of the page" : "none yet")),
      pictures,
      el("section", { id: "density" }, el("h2", {}, "How often it fires"),
        el("div", { class: "columns" },
          el("p", {}, density(table, row)),
          figure(charts.firing(table.rate, table.rate[row], `Firing rates of all latents. ${density(table, row)}`),
            "Firing rates of all latents that fire, ", table.rate[row] > 0 ? "with this latent marked." : table.rate[row] === 0 ? "of which this latent is none." : "this one's is hidden."))),
      names.length > 0 && el("section", { id: "names" }, el("h2", {}, "What it is called"), nameList(names)),
      ...concepts.map((concept) => conceptPart(study, table, concept, row, concept.name === wanted, details)),
      beside.length > 0 && el("section", { id: "beside" }, el("h2", {}, "Latents beside it"), el("div", { class: "columns" }, beside)),
      el("section", { id: "notes" }, el("h2", {}, "Notes by readers"), mammosae.notes.list(notes), !mammosae.viewer && mammosae.notes.form(study, table, latent)));
    const others = await elsewhere(study, table, latent);
    mammosae.add(root, others && el("section", { id: "elsewhere" }, others),
      el("section", { id: "load" }, el("h2", {}, "Load this latent"), mammosae.around.use(study, info, latent), mammosae.around.links(study, info)));
    if (!mammosae.viewer) await pictures.filled;  // images that are drawn meanwhile take longer
    return `Latent ${latent}, ${encoderName(info.encoder)}`;
  };
})();
