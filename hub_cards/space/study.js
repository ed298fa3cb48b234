"use strict";
// The page on the study itself: what its words mean, data, models, SAE, how well the SAE copies, provenance.

mammosae.pages.study = (() => {
  const { el, readable, conceptName, encoderName, plain, fixed, count } = mammosae;

  const NAMES = { d_in: "Channels", d_sae: "Latents", mse: "MSE", l0: "L0", sha256: "SHA-256" };
  const VARIANTS = { without_sae: "without SAE", with_sae: "with SAE" };
  const heading = (name) => NAMES[name] ?? readable(name.includes("_") ? name : name.charAt(0).toUpperCase() + name.slice(1)).replace(/^n /i, "")
    .replace(/^./, (first) => first.toUpperCase());

  const terms = (study) => [
    ["Latent", "One unit of the sparse autoencoder (SAE). At each position of the image's feature map it is silent (0) or fires with some strength. Few fire at once, so that each may stand for something nameable, such as a bright spot or an edge. What it stands for is not known beforehand, and a name given by a reader is an interpretation."],
    ["Encoder, layer", "The network whose inner values the SAE reads, and the place in it. An encoder trained for one concept is named with it, as in “finetuned/Mass”."],
    ["Activation", "The strength with which a latent fires, in the SAE's own units. It can be compared within one latent, and only loosely between latents."],
    ["Concept, class", "A finding such as a mass. The class “present” are images with the finding, “absent” images without it."],
    ["Mean, absent and present", "Mean activation over all positions of the training images of the class."],
    ["Score and rank", "What latents are ranked by: the class's mean, by default less the mean over all training images. Rank 1 has the highest score. A high rank means that the latent differs between the classes, not that it causes the classifier's answer."],
    ["Fires in", "Share of the test images in which the latent fires at one position or more. A latent that fires in no test image and no training image is dead: it still has a rank, which says nothing. Dead latents are left out of the list unless it is told to show them."],
    ["Box AP", "Average precision, 0 to 1, of the boxes drawn around the strongest parts of the latent's map, against the annotated boxes in test images with the finding. Only the best-ranked latents are measured. The list shows it at the first threshold and overlap of the study; a latent's page shows all of them."],
    ["Ablation", "Mean change of the concept's logit (the classifier's answer before it is turned into a probability) over test images with the finding when this latent alone is set to 0. Below 0, the latent had spoken for the finding. Known where everything behind the SAE is linear."],
    ["Sweep, k", "Groups of the k best latents of every class, taken together. “Kept”: all other latents are set to 0; is the group enough? “Silenced”: the group is set to 0; is it needed? The grey lines are random groups of the same size: only what beats them says something about the choice."],
    ...(study.tables.some((table) => table.concepts.some((entry) => entry.evidence)) ? [["Verdict, q, reliance, in its boxes, goes with", "Evidence on every latent that fires, from test images. The verdict is by a rule: “concept”, it tells the finding beyond the covariates and in the boxes where there are any, and the classifier rests on it; “context”, it tells the finding, but covariates explain it or it does not lie in the boxes; “shortcut”, the classifier rests on it and it told the finding in training images only, or through how images were acquired, or from outside the breast; “unclear”, everything else. It is a reason to look, no proof. q: p-value of an AUROC of 0.5 after Benjamini and Hochberg over the latents. Reliance: share of the logit's variance that goes with what the latent adds to it. In its boxes: its activation in the image's own boxes over that in other patients'; 1 by chance. Goes with: the covariate that it is correlated with most."]] : []),
    ["AUROC", "The chance that the classifier gives a random image with the finding a higher answer than one without. 0.5 is guessing, 1 is perfect. In brackets, 95 % intervals over patients."],
    ["“–” and “hidden”", `“–” was not measured or is not defined. “hidden” rests on fewer than ${study.min_group} patients and is not given, so that nobody can be recognised. Neither is 0.`],
  ];

  const facts = (values) => el("dl", { class: "facts" }, Object.entries(values)
    .filter(([, value]) => value !== null && typeof value !== "object")
    .map(([name, value]) => el("div", { class: String(value).length > 40 ? "full" : null },
      el("dt", {}, heading(name)),
      el("dd", {}, typeof value === "number" ? plain(value) : String(value)))));

  const wide = (rows, caption) => {
    const simple = rows.map((row) => Object.fromEntries(Object.entries(row).filter(([, value]) => typeof value !== "object" || value === null || Array.isArray(value))));
    const names = [...new Set(simple.flatMap(Object.keys))];
    return rows.length ? mammosae.plainTable(
      names.map((name) => ({ text: heading(name), number: simple.some((row) => typeof row[name] === "number") })),
      simple.map((row) => names.map((name) => {
        const value = row[name];
        if (value === null || value === undefined) return mammosae.MISSING;
        if (Array.isArray(value)) return value.join(" × ");
        return typeof value === "number" ? plain(value) : name === "concept" ? conceptName(value) : name === "encoder" ? encoderName(value) : String(value);
      })), { caption }) : null;
  };

  const one = (study, several) => {
    const level = several ? "h3" : "h2";
    const sae = Object.entries(study.sae);
    return [
      several && el("h2", {}, mammosae.studyName(mammosae.data.index.studies.indexOf(study))),
      el("p", {}, `${study.data_kind === "phantom" ? "The images are generated phantoms: the numbers show how the method runs and say nothing about patients. " : ""}`
        + `Made on ${study.created}.`,
        study.link && [" Source: ", el("a", { href: study.link, rel: "noopener" }, study.origin), "."]),
      el(level, {}, "Data"),
      Array.isArray(study.data.splits) ? wide(study.data.splits, "Images of each split") : null,
      Array.isArray(study.data.concepts) ? wide(study.data.concepts, `Images with each concept; ${study.data_kind === "phantom" ? "boxes are where the finding was drawn" : "boxes are the annotated ones"}`) : null,
      !mammosae.viewer && el("p", {}, "Images: ", mammosae.toldPictures(study)),
      el(level, {}, "Models"),
      wide(study.models.map(({ name, ...row }) => row), "Encoders and classifiers"),
      el(level, {}, "Sparse autoencoder"),
      ...sae.flatMap(([layer, values]) => [sae.length > 1 ? el(several ? "h4" : "h3", {}, `Layer ${layer}`) : null, facts(values),
        values.published && el("p", {}, "Published as ", place(values.published)),
        wide(values.quality ?? [], `How well it copies ${sae.length > 1 ? layer : "the layer"}: explained variance (1 is perfect), L0 (latents that fire per position), share of latents that never fire`)]),
      el(level, {}, "With and without the SAE"),
      el("p", {}, "What passing the features through the SAE costs the classifier. Where it costs much, the latents say little about the model."),
      mammosae.plainTable(["Layer", "Encoder", "Concept", "Features", { text: "AUROC", number: true }, { text: "95 % interval", number: true }, { text: "Test rows", number: true }],
        study.reconstruction.map((row) => [row.layer, row.model, conceptName(row.concept), VARIANTS[row.variant] ?? row.variant,
          row.auroc === null ? mammosae.SUPPRESSED : fixed(row.auroc), row.auroc_low === null ? mammosae.MISSING : mammosae.interval(row, "auroc").trim(),
          row.n_rows === null ? mammosae.SUPPRESSED : count(row.n_rows)]),
        { caption: "Classifier's AUROC on the test split" }),
      el(level, {}, "Provenance"),
      facts(study.provenance),
      el("dl", { class: "facts" }, Object.entries(study.provenance.packages ?? {}).map(([name, version]) => el("div", {}, el("dt", {}, name), el("dd", {}, version)))),
      el("details", {}, el("summary", {}, "Settings of the study"), el("pre", {}, JSON.stringify(study.config, null, 1))),
    ];
  };

  // What people say of the study, and where its other parts are.
  const said = (about) => about && (about.authors.length || about.description || about.links.length) ? el("section", { id: "about" },
    about.description && el("p", {}, about.description),
    about.authors.length > 0 && el("p", {}, `Authors: ${about.authors.join(", ")}`),
    about.links.length > 0 && el("ul", {}, about.links.map(({ name, text, url }) => el("li", {}, `${name}: `, el("a", { href: url, rel: "noopener" }, text))))) : null;

  // Where an SAE or a classifier is published.
  const place = ({ repo, revision, id }) => el("a", { href: ["https://huggingface.co", repo].join("/"), rel: "noopener" }, `hub://${repo}${revision ? `@${revision}` : ""}/${id}`);

  return async (root) => {
    const { about, studies } = mammosae.data.index;
    mammosae.add(root,
      el("h1", {}, "Study and terms"), said(about),
      el("section", {}, el("h2", {}, "What the words mean"), el("dl", { class: "terms" },
        terms(studies[0]).flatMap(([term, text]) => [el("dt", {}, term), el("dd", {}, text)]))),
      ...studies.map((study) => el("section", {}, one(study, studies.length > 1))),
      el("section", {}, el("h2", {}, "Keys"), mammosae.plainTable(["Key", "What it does"], [
        ["/", "go to the search"], ["Escape", "clear the search"], ["↑ ↓ Home End", "move through the rows of the table"],
        ["Page Up, Page Down", "the page before, the next page of the table"], ["Enter", "open the latent"]])));
    return "Study and terms";
  };
})();
