"use strict";
// Images in which a latent fires, where they may be shown: thumbnails by kind, and one at a time in a dialog.

// The pictures of a latent as rows {kind, rank, activation, quantile, classes, names, boxes, whole, crop}: `classes` are numbers and `names` words
// by concept, `whole` and `crop` addresses, `crop` null where no place is known. Null where there are none to show. A served page puts another
// function in its place, whose rows may have `apart`, the address of a page about the image.
mammosae.pictures = async (table, latent) => {
  const CHUNK = 256;  // latents per file, as of their details
  const chunk = Math.floor(latent / CHUNK);
  if (!table.info.pictures) return null;
  if (!table.info.pictures.includes(chunk)) return [];
  const { latents } = await mammosae.load(`p${table.info.file}-${chunk}`);
  const words = Object.fromEntries((mammosae.studyOf(table.info).data.vocabulary ?? []).map(({ name, classes }) => [name, classes]));
  return (latents.find((one) => one.latent === latent)?.pictures ?? [])
    .map((row) => ({ ...row, names: words, classes: Object.fromEntries(row.classes.map((one) => [one.concept, one.class])) }));
};

// How many pictures a study shows, or why none, as sentences.
mammosae.toldPictures = (study) => {
  const told = study.data.pictures;
  if (!told) return "These pages hold numbers of groups of patients alone.";
  if (!told.shown) return `${told.reason.replace(/^./, (first) => first.toUpperCase())}.`;
  return `These pages show ${mammosae.counted(told.n_pictures, "picture")} of ${mammosae.counted(told.n_latents, "latent")} (${mammosae.fixed(told.bytes / 1e6, 1)} MB): of those that the study names and those that rank best, ${told.most} at most.`;
};

mammosae.gallery = (() => {
  const { el, number, conceptName, className, counted } = mammosae;

  const KINDS = {
    strongest: ["Strongest", "Where it fires most, one image of each patient."],
    range: ["Over its range", "From weak to strong, at even steps of the images in which it fires: what else it fires on."],
    healthy: ["Healthy", "Strongest among the images without any finding."],
  };

  const classes = (row) => Object.entries(row.classes).filter(([, label]) => label !== null)
    .map(([concept, label]) => `${conceptName(concept)} ${row.names[concept]?.[label] ?? className(label, label < 2 ? 2 : label + 1)}`);
  const words = (row) => [`activation ${number(row.activation)}`, `no weaker than in ${Math.round(100 * row.quantile)} % of the test images it fires in`,
    ...classes(row), row.boxes.length ? `${counted(row.boxes.length, "box").replace("boxs", "boxes")} marked` : "no box marked"];
  const title = (row) => `${KINDS[row.kind][0]} ${row.rank}`;

  // One picture after the other, as large as the window: arrow keys turn, Escape closes, and the focus is where it was.
  const dialog = (rows, latent) => {
    let at = 0;
    let whole = true;
    const picture = el("img", { alt: "" });
    const caption = el("p", { id: "picture-caption", "aria-live": "polite" });
    const apart = el("a", { href: "#/image" }, "Take this image apart");
    const part = el("button", { type: "button", id: "picture-part", onclick: () => { whole = !whole; show(at); } });
    const turn = (by) => show((at + by + rows.length) % rows.length);
    const box = el("dialog", { class: "picture", "aria-label": `Pictures of latent ${latent}`, onclose: () => box.remove(), onclick: (event) => { if (event.target === box) box.close(); },
      onkeydown: (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (by) { event.preventDefault(); turn(by); }
      } },
    el("p", { class: "tools" }, el("button", { type: "button", "aria-label": "Previous picture", onclick: () => turn(-1) }, "←"), el("button", { type: "button", "aria-label": "Next picture", onclick: () => turn(1) }, "→"),
      part, rows.some((row) => row.apart) && apart, el("button", { type: "button", id: "picture-close", onclick: () => box.close() }, "Close")), picture, caption);
    const show = (place) => {
      at = place;
      const row = rows[at];
      const shown = whole || !row.crop ? "whole" : "crop";
      picture.src = row[shown];
      caption.textContent = `${title(row)} (${at + 1} of ${rows.length}): ${words(row).join(" · ")}`;
      picture.alt = `${shown === "whole" ? "Whole image with the latent's heat" : "Round the latent's peak"}; ${title(row)}: ${words(row).join(", ")}`;
      part.textContent = shown === "whole" ? "Round the peak" : "Whole image";
      part.disabled = !row.crop;
      if (row.apart) apart.href = row.apart;
    };
    apart.addEventListener("click", () => box.close());
    return (place) => {
      whole = true;
      show(place);
      document.body.append(box);
      box.showModal();
    };
  };

  const thumbnails = (study, rows, latent) => {
    const open = dialog(rows, latent);
    return [el("p", { class: "small" }, "Round the place where it fires most; the line runs at half of that. Red: boxes that were marked. The number is the activation. A click or Enter shows the whole image with the heat."),
      Object.entries(KINDS).filter(([kind]) => rows.some((row) => row.kind === kind)).map(([kind, [name, text]]) => [el("h3", {}, name), el("p", { class: "small" }, text),
        el("div", { class: "thumbnails" }, rows.map((row, i) => row.kind === kind && el("figure", { class: "thumbnail" },
          el("button", { type: "button", onclick: () => open(i) }, el("img", { loading: "lazy", src: row.crop ?? row.whole, alt: `${title(row)}: ${words(row).join(", ")}` })),
          el("figcaption", {}, el("b", {}, number(row.activation)), ` ${classes(row).join(", ")}`))))]),
      !mammosae.viewer && el("p", { class: "small" }, mammosae.toldPictures(study))];
  };

  // What stands in the section: pictures, or why there are none and who sees them.
  const content = async (study, table, latent) => {
    const rows = await mammosae.pictures(table, latent);
    if (rows?.length) return thumbnails(study, rows, latent);
    if (mammosae.viewer || table.rate[table.byLatent.get(latent)] === 0) return el("p", { class: "missing" }, "It fires in no test image.");
    return [el("p", { class: "missing" }, `${rows === null ? "No images here." : "No picture of this latent."} ${mammosae.toldPictures(study)}`),
      el("p", {}, "Who has the images and the study sees this page with them, on that machine alone: ", mammosae.copyable("mammosae view STUDY.yaml"))];
  };

  // A section that fills itself; `filled` of it is done when it has.
  return (study, table, latent) => {
    const waits = el("p", { class: "status", role: "status" }, mammosae.viewer ? "Drawing images of the study …" : "");
    const section = el("section", { id: "pictures" }, el("h2", {}, "What it fires on"), waits);
    section.filled = content(study, table, latent).catch((error) => el("p", { class: "missing" }, `No images here: ${error.message}.`))
      .then((found) => { waits.remove(); mammosae.add(section, found); });
    return section;
  };
})();
