"use strict";
// What lies round a latent: how strongly it fires by class, latents beside it, where its SAE and findings are, and code that loads it.

// Text to be copied: shown as it is, with a button; where a browser forbids the clipboard, the text is selected instead.
mammosae.copyable = (text) => {
  const { el } = mammosae;
  const long = text.includes("\n");
  const code = el(long ? "pre" : "code", long ? { tabindex: 0, class: "code" } : {}, text);
  const told = el("span", { class: "small", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      told.textContent = "selected: copy it with the keyboard";
    }
  };
  return el(long ? "div" : "span", { class: "copyable" }, code, " ", el("button", { type: "button", class: "copy", onclick: copy }, "Copy"), " ", told);
};

mammosae.around = (() => {
  const { el, charts, fixed, count, counted, conceptName, className } = mammosae;

  const CHUNK = 256;  // latents per file of what belongs to single latents

  // Histograms and neighbours of a latent, of findings that have them; null where there are none.
  const details = async (table, latent) => {
    const chunk = Math.floor(latent / CHUNK);
    if (!(table.info.details ?? []).includes(chunk)) return null;
    const { latents } = await mammosae.load(`d${table.info.file}-${chunk}`);
    return latents.find((one) => one.latent === latent) ?? null;
  };

  const histogram = (concept, { edges, histograms }) => {
    const own = histograms.filter((row) => row.concept === concept.name).sort((one, other) => one.class - other.class);
    if (!own.length) return null;
    const classes = concept.means.length;
    const named = own.map((row) => ({ ...row, edges, text: className(row.class, classes), last: row.class === classes - 1 }));
    const silent = named.map((row) => `${row.text}: ${row.n === null ? "n hidden" : `n ${count(row.n)}`}${row.n_silent === null ? ", those in which it is silent in the first bar" : `, silent in ${count(row.n_silent)}`}`).join("; ");
    return el("figure", { class: "histogram" }, charts.histogram(named, `${conceptName(concept.name)}: how strongly it fires in the test images of each class. ${silent}.`),
      el("figcaption", {}, el("span", { class: "keys" }, named.map((row) => el("span", { class: `key class${row.last ? "-last" : row.class}` }, row.text))),
        `Its maximum over positions in test images: share of a class's images per unit of activation; where it is silent is no part of a bar unless that is said. ${silent}. Bars are joined until each stands for enough patients.`));
  };

  const WORDS = {
    together: ["Fire in the same images", "Correlation", "Correlation of firing over the test images."],
    decoder: ["Nearest decoder rows", "Cosine", "Cosine of the directions that the latents add to the layer."],
  };

  const neighbours = (table, found) => Object.entries(WORDS).filter(([kind]) => found[kind]?.neighbour.length).map(([kind, [title, heading, meaning]]) => {
    const own = found[kind];
    const name = (latent) => { const found = table.names.get(latent)?.[0]?.name; return found && conceptName(found); };
    const several = new Set(own.chance).size > 1;
    return el("div", {}, mammosae.plainTable(["Latent", ...(own.neighbour.some(name) ? ["Name"] : []), { text: heading, number: true }, ...(several ? [{ text: "Chance", number: true }] : [])],
      own.neighbour.map((latent, i) => [el("a", { href: mammosae.latentAddress(table.info, latent) }, String(latent)), ...(own.neighbour.some(name) ? [name(latent) ?? ""] : []),
        fixed(own.value[i], 2), ...(several ? [fixed(own.chance[i], 2)] : [])]),
      { caption: title }),
    el("p", { class: "small" }, meaning, several ? " Chance: 95 % of neighbours of that place by chance are no nearer." : ` By chance up to ${fixed(own.chance[0], 2)}, in 95 % of draws.`,
      own.n[0] === null ? "" : ` n ${counted(own.n[0], "test image")}.`));
  });

  // A literal of Python.
  const quoted = (text) => JSON.stringify(String(text)).replace(/[\u007f-\uffff]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);

  const code = (study, info, latent) => {
    const published = study.sae[info.layer]?.published;
    const at = published?.revision ? `@${published.revision.replaceAll("/", "%2F")}` : "";
    const folder = quoted("PATH/OF/THE/SAE");
    const theirs = published ? `SAE.from_pretrained(${quoted(published.repo)}, ${quoted(published.id)})` : `SAE.load_from_disk(${folder})`;
    const ours = published ? quoted(`hub://${published.repo}${at}/${published.id}`) : folder;
    const lines = (...rows) => `${rows.join("\n")}\n`;
    return [
      ["SAELens", lines("from sae_lens import SAE", "", `sae = ${theirs}`, `latent = ${latent}`, "direction = sae.W_dec[latent]  # what it adds to the layer's channels",
        "reads = sae.W_enc[:, latent]  # what it looks for in them")],
      ["mammosae-plugin", lines("from mammosae_plugin.adapters import load_vision_sae", "from mammosae_plugin.hub import load_findings", "",
        `sae = load_vision_sae(${ours})`, `findings = load_findings(${quoted(study.link ? study.origin : "STUDY")})`,
        `layer, encoder, latent = ${quoted(info.layer)}, ${quoted(info.encoder)}, ${latent}`,
        'rows = findings.concepts.query("layer == @layer and encoder == @encoder and latent == @latent")',
        'print(rows[["concept", "class", "class_mean", "score", "rank"]])')],
    ];
  };

  const use = (study, info, latent) => {
    const sae = study.sae[info.layer] ?? {};
    return [
      el("p", {}, sae.published ? "The SAE is on the Hub; both load it from there." : ["The SAE is not published with these findings: put the path of your copy in. ",
        info.sae && ["The SHA-256 of its tensors is ", el("code", {}, info.sae), "."]]),
      el("div", { class: "columns" }, code(study, info, latent).map(([title, text]) => el("div", {}, el("h3", {}, title), mammosae.copyable(text))))];
  };

  // Where the SAE, the findings, the classifier and the study's other parts are.
  const links = (study, info) => {
    const model = study.models.find((row) => row.layer === info.layer && row.encoder === info.encoder);
    const page = (published) => ["https://huggingface.co", published.repo].join("/");
    const found = [
      study.sae[info.layer]?.published && ["SAE", page(study.sae[info.layer].published), study.sae[info.layer].published.repo],
      study.link && ["findings", study.link, study.origin],
      model?.published && ["classifier", page(model.published), model.published.repo],
      ...mammosae.data.index.about.links.map(({ name, url, text }) => [name, url, text]),
    ].filter(Boolean);
    const once = [...new Map(found.map((one) => [one[1], one])).values()];
    return once.length > 0 && el("p", { id: "elsewhere-on-the-hub" }, "Elsewhere: ", once.flatMap(([name, url, text], i) => [i ? " · " : "", `${name} `, el("a", { href: url, rel: "noopener" }, text)]));
  };

  return { details, histogram, neighbours, code, use, links };
})();
