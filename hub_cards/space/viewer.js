"use strict";
// What `mammosae view` adds to the pages of a Space: images of the study and of one's own, taken apart by latents; notes that are kept in the study.
// It is served on this machine alone and is never a part of a Space. Addresses are below that of the page, which holds the token of this run.

mammosae.viewer = (() => {
  const { el } = mammosae;

  // A JSON value of the server; an error is one line for people.
  const api = async (name, query = {}, options = {}) => {
    let answer;
    try {
      answer = await fetch(`api/${name}?${new URLSearchParams(query)}`, options);
    } catch {
      throw new Error("the server does not answer; is `mammosae view` still running?");
    }
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.error);
    return value;
  };

  const about = (() => {
    let asked = null;
    return () => {
      asked ??= api("about").catch((error) => { asked = null; throw error; });
      return asked;
    };
  })();

  // -- a latent's page: images of the study, and a form for notes that go into its folder

  mammosae.pictures = async ({ info }, latent) => {
    const { no_pictures: missing } = await about();
    if (missing !== null) throw new Error(missing);
    const concept = mammosae.parse(location.hash).params.get("concept") ?? info.concepts[0].concept;
    const rows = await api("examples", { layer: info.layer, encoder: info.encoder, latent });
    return rows.map((row) => ({ ...row, apart: mammosae.address(["image"], { layer: info.layer, encoder: info.encoder, concept, image: row.row }) }));
  };

  const AUTHOR = "mammosae-author";
  const author = (value) => {
    try {
      if (value !== undefined) localStorage.setItem(AUTHOR, value);
      return localStorage.getItem(AUTHOR) ?? "";
    } catch { return value ?? ""; }
  };

  const noteForm = (section, study, table, latent) => {
    const field = (name, text, node) => el("div", { class: "field" }, el("label", { for: `note-${name}` }, text), node);
    const text = el("textarea", { id: "note-text", rows: 4 });
    const label = el("input", { id: "note-label", autocomplete: "off" });
    const who = el("input", { id: "note-author", value: author(), autocomplete: "off" });
    const concept = el("select", { id: "note-concept" }, el("option", { value: "" }, "none"),
      table.info.concepts.map((one) => el("option", { value: one.concept }, mammosae.conceptName(one.concept))));
    const sure = el("select", { id: "note-confidence" }, el("option", { value: "" }, "not said"), [1, 2, 3, 4, 5].map((one) => el("option", { value: one }, `${one} of 5`)));
    const told = el("p", { class: "small told", role: "status" });
    const button = el("button", { type: "submit", id: "note-add" }, "Write the note");
    const write = async () => {
      const said = { latent, layer: table.info.layer, encoder: table.info.encoder, text: text.value, label: label.value, author: who.value,
        concept: concept.value, confidence: sure.value ? Number(sure.value) : null };
      button.disabled = true;
      try {
        Object.assign(study, await api("note", {}, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) }));
        delete table.info.rows?.notes;  // kept by latent as they were
        table.notes = mammosae.byLatent(table.info, "notes");
        section.querySelector("ul.notes, p.missing").replaceWith(el("ul", { class: "notes" }, table.notes.get(latent).map((note) => el("li", {},
          el("p", { class: "note" }, note.label && el("b", { class: "badge" }, note.label), note.text), el("p", { class: "small" }, `${note.author} · ${note.created.slice(0, 10)}`)))));
        author(who.value);
        text.value = label.value = "";
        told.textContent = "Written into the study's folder.";
        told.classList.remove("failed");
      } catch (error) {
        told.textContent = `Not written: ${error.message}`;
        told.classList.add("failed");
      }
      button.disabled = false;
    };
    mammosae.add(section, el("form", { class: "write", "aria-label": "Write a note", onsubmit: (event) => { event.preventDefault(); write(); } },
      el("h3", {}, "Write a note"),
      el("p", { class: "small" }, "It is kept in the study's folder and goes out with the findings, under the name given, when they are published: leave out whatever could name a patient."),
      field("text", "What you see", text),
      el("div", { class: "fields" }, field("label", "Label", label), field("author", "Who writes", who), field("concept", "Concept", concept), field("confidence", "How sure", sure)),
      el("p", { class: "tools" }, button), told));
  };

  const ofSpace = mammosae.pages.latent;
  mammosae.pages.latent = async (root, place) => {
    const name = await ofSpace(root, place);
    const [study] = mammosae.data.index.studies;
    const info = study.tables.find((one) => one.layer === place.parts[0] && one.encoder === place.parts[1]);
    const notes = root.querySelector("#notes");
    if (!info || !notes) return name;  // there is no such latent
    const [table, latent] = [await mammosae.table(info), Number(place.parts[2])];
    noteForm(notes, study, table, latent);
    return name;
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("nav-compare").before(el("a", { href: "#/image", id: "nav-image" }, "Images"));
    setTimeout(() => { document.getElementById("origin").textContent = ORIGIN; });  // after the page has said what a Space says
    about().catch(() => {});  // what takes long to load is loaded while the first page is read
  });

  const ORIGIN = "Shown by mammosae view on this machine alone: images are read from the study's data as they are asked for, and nothing leaves it. "
      + "Drawn by mammosae-plugin; research only, not a medical device.";

  return { api, about };
})();

// An image: its logit as a sum over latents, which of them fire where, and the logit without some of them.
mammosae.pages.image = (() => {
  const { el, number, signed, fixed, conceptName, encoderName, className, count, counted } = mammosae;
  const { api, about } = mammosae.viewer;
  const ROWS = 15;  // latents that are listed at first, and that every "more" adds
  const FINE = 640;  // pixels of a map's longest side
  const SVG = "http://www.w3.org/2000/svg";

  const shape = (name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  const probability = (logits, output) => {
    if (logits.length === 1) return 1 / (1 + Math.exp(-logits[0]));
    const most = Math.max(...logits);
    return Math.exp(logits[output] - most) / logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
  };

  // Logits to three decimals with their sign, so that a column of them adds up for the eye.
  const logitText = (value) => (value === null || Number.isNaN(value) ? mammosae.MISSING : `${value > 0 ? "+" : ""}${fixed(value)}`);
  const labelText = (label, classes) => (label === null ? "not labelled" : classes.length === 2 ? className(label, 2) : classes[label]);

  return async (root, { params }) => {
    const status = el("p", { class: "status", role: "status", id: "view-status" }, "Reading the study …");
    const failed = el("p", { class: "notice", role: "alert", hidden: true, id: "view-error" });
    mammosae.add(root, el("h1", {}, "Images"),
      el("p", { class: "lead" }, "Which latents fire in an image, where, and what each adds to the logit; what becomes of the logit without them."), status, failed);
    const known = await about();
    const usable = known.classifiers.filter((one) => one.concepts.length);
    if (!usable.length) {
      status.textContent = "";
      failed.hidden = false;
      failed.textContent = `No latents table of the study can be read: ${known.classifiers.map((one) => one.missing).find(Boolean) ?? "no classifier stands behind one"}`;
      return "Images";
    }
    const choices = usable.flatMap((one) => one.concepts.map((own) => ({ ...one, ...own })));
    const nameOf = (one) => `${conceptName(one.concept)} · ${encoderName(one.encoder)} · ${one.layer}`;
    const idOf = (one) => [one.layer, one.encoder, one.concept].map(encodeURIComponent).join("/");
    const asked = ["layer", "encoder", "concept"].map((name) => encodeURIComponent(params.get(name) ?? "")).join("/");
    const first = choices.find((one) => idOf(one) === asked) ?? choices.find((one) => one.primary && one.encoder.startsWith("finetuned")) ?? choices.find((one) => one.primary) ?? choices[0];
    const state = { chosen: first, split: params.get("split") ?? "test", label: params.get("label") ?? "", text: params.get("text") ?? "", order: params.get("order") ?? "number", key: params.get("image") };

    let list = { rows: [], ids: [], total: 0 };
    let image = null;
    let off = new Set();
    let output = 0;
    let cell = null;
    let here = null;
    let shown = null;  // the latent whose map lies over the image
    let busy = 0;

    const tell = (text) => { status.textContent = text; };
    const fail = (error) => { failed.hidden = error === null; failed.textContent = error === null ? "" : `${error.message.replace(/^./, (one) => one.toUpperCase())}`; };
    // What the server is asked; of several questions of one kind only the answer to the last counts.
    const turns = {};
    const ask = async (kind, text, question) => {
      const mine = (turns[kind] = (turns[kind] ?? 0) + 1);
      busy += 1;
      root.setAttribute("aria-busy", "true");
      tell(text);
      fail(null);
      try {
        const value = await question();
        return mine === turns[kind] ? value : null;
      } catch (error) {
        if (mine === turns[kind]) fail(error);
        return null;
      } finally {
        busy -= 1;
        if (!busy) { root.removeAttribute("aria-busy"); tell(""); }
      }
    };
    const place = () => ({ layer: state.chosen.layer, encoder: state.chosen.encoder, concept: state.chosen.concept });
    const remember = () => mammosae.remember(mammosae.address(["image"], { ...place(), split: state.split === "test" ? "" : state.split, label: state.label, text: state.text,
      order: state.order === "number" ? "" : state.order, image: state.key?.startsWith("file-") ? "" : state.key ?? "" }));

    // -- choosing

    const controls = el("div", { class: "filters" });
    const position = el("input", { type: "number", min: 1, id: "position", "aria-label": "Number in the list", onchange: () => go(Number(position.value) - 1) });
    const of = el("span", { id: "of" });
    const previous = el("button", { type: "button", id: "image-previous", onclick: () => go(at() - 1) }, "← Previous");
    const next = el("button", { type: "button", id: "image-next", onclick: () => go(at() + 1) }, "Next →");
    const pager = el("div", { class: "pager images" }, previous, next, el("span", {}, "Image ", position, " ", of));
    const at = () => list.rows.indexOf(Number(state.key));

    const drawControls = () => {
      const one = state.chosen;
      const splits = [["", "all"], ...one.splits.map((name) => [name, name])];
      const labels = [["", "any"], ...one.classes.map((name, i) => [String(i), labelText(i, one.classes)])];
      const set = (name) => (value) => { state[name] = value; state.key = null; drawControls(); load(); };
      const search = el("input", { id: "image-text", type: "search", value: state.text, autocomplete: "off", onchange: () => set("text")(search.value) });
      const file = el("input", { id: "image-file", type: "file", accept: ".png,.dcm,.dicom,image/png,application/dicom", disabled: !known.can_open, onchange: () => open(file) });
      const way = el("select", { id: "image-way", disabled: !known.can_open }, [["", "as the study's"], ["mammo-clip", "Mammo-CLIP's"], ["letterbox", "letterbox"]].map(([value, text]) => el("option", { value }, text)));
      controls.replaceChildren(
        el("div", { class: "fields" },
          mammosae.choice("Classifier", "image-classifier", choices.map((other) => [idOf(other), nameOf(other)]), idOf(one), (value) => {
            state.chosen = choices.find((other) => idOf(other) === value);
            state.label = "";
            if (state.key?.startsWith("file-")) show(state.key); else { drawControls(); load(); }
          }, { long: true }),
          mammosae.choice("Split", "image-split", splits, state.split, set("split")),
          mammosae.choice(`${conceptName(one.concept)} is`, "image-label", labels, state.label, set("label")),
          mammosae.choice("In order of", "image-order", [["number", "number"], ["highest", "logit, highest first"], ["lowest", "logit, lowest first"]], state.order, set("order")),
          el("div", { class: "field" }, el("label", { for: "image-text" }, "Id holds"), search)),
        el("details", { class: "own" }, el("summary", {}, "Open an image of your own"),
          known.can_open ? null : el("p", { class: "missing" }, `Not here: ${known.no_pictures}`),
          el("div", { class: "fields" },
            el("div", { class: "field" }, el("label", { for: "image-file" }, "PNG or DICOM file"), file),
            el("div", { class: "field" }, el("label", { for: "image-way" }, "Prepared in which way"), way)),
          el("p", { class: "small" }, "It goes to the server on this machine alone, is held in memory while you look at it, and is never stored.")));
      controls.querySelector("details").open = state.key?.startsWith("file-") ?? false;
    };

    const open = async (file) => {
      const [chosen] = file.files;
      if (!chosen) return;
      const way = controls.querySelector("#image-way").value;
      const answer = await ask("open", `Reading ${chosen.name} …`, () => api("open", { name: chosen.name, preparation: way }, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: chosen }));
      if (answer) await show(answer.key);
    };

    const go = (wanted) => {
      const to = Math.min(list.rows.length - 1, Math.max(0, wanted));
      if (Number.isInteger(to) && list.rows.length) show(String(list.rows[to]));
    };

    const load = async () => {
      const { split, label, text, order } = state;
      const found = await ask("list", "Looking for images …", () => api("images", { ...place(), split, label, text, order }));
      if (found === null) return;
      list = found;
      if (!list.rows.length) {
        image = null;
        body.replaceChildren(el("p", { class: "missing" }, "No image of the study is like that."));
        drawPager();
        return;
      }
      await show(at() >= 0 ? state.key : String(list.rows[0]));
    };

    const drawPager = () => {
      const own = state.key?.startsWith("file-");
      pager.hidden = own || !list.rows.length;
      position.max = list.rows.length;
      position.value = at() + 1;
      of.textContent = `of ${count(list.rows.length)}${list.rows.length < list.total ? ` (${count(list.total)} in the table)` : ""}`;
      previous.disabled = at() <= 0;
      next.disabled = at() >= list.rows.length - 1;
    };

    // -- one image

    const body = el("div", { class: "view" });
    const show = async (key, { encode = false } = {}) => {
      const loads = encode || key.startsWith("file-");
      const found = await ask("image", loads ? "Passing the image through the network …" : "Reading the image …", () => api("image", { key, ...place(), ...(encode ? { encode: 1 } : {}) }));
      if (found === null) return;
      const same = image?.key === key;
      state.key = key;
      image = found;
      image.of = new Map(image.latents.map((latent, i) => [latent, i]));
      output = Math.min(output, image.logits.length - 1);
      if (image.logits.length > 1 && !same) output = image.logits.indexOf(Math.max(...image.logits));
      if (!same) { off = new Set(); cell = null; shown = null; }
      here = null;
      drawControls();
      drawPager();
      draw();
      remember();
      if (cell !== null) choose(cell);
      if (shown !== null) heat(shown);
      root.dataset.image = key;
    };

    const info = () => mammosae.data.index.studies[0].tables.find((one) => one.layer === state.chosen.layer && one.encoder === state.chosen.encoder);
    const contribution = (i, k = output) => image.mean[i] * image.weight[i][k];
    const sums = () => image.logits.map((_, k) => image.bias[k] + image.error[k] + image.latents.reduce((sum, latent, i) => (off.has(latent) ? sum : sum + contribution(i, k)), 0));

    let parts = {};
    const draw = () => {
      const names = info() ? mammosae.byLatent(info(), "names") : new Map();
      parts = { names };
      body.replaceChildren(el("div", { class: "left" }, heading(), picture(), placePart()), el("div", { class: "right" }, logitPart(), latentsPart()));
      update();
    };

    const heading = () => {
      // Of findings that are absent the classifier's own is named, and the rest are counted.
      const all = Object.entries(image.labels);
      const absent = all.filter(([name, [label, classes]]) => label === 0 && classes.length === 2 && name !== state.chosen.concept);
      const labels = all.filter((one) => !absent.includes(one)).map(([name, [label, classes]]) => `${conceptName(name)} ${labelText(label, classes)}`);
      if (absent.length) labels.push(`${count(absent.length)} other findings absent`);
      return [el("h2", { class: "image-name" }, image.name),
        el("p", { class: "where" }, [image.split && `${image.split} split`, ...labels].filter(Boolean).join(" · ") || "an image of your own; nothing is known of it"),
        image.prepared && el("p", { class: "small" }, image.prepared)];
    };

    // -- the picture, with the place and the map over it

    const picture = () => {
      const [height, width] = image.size;
      const [h, w] = image.grid;
      const photo = el("img", { alt: `Image ${image.name} as the network sees it`, id: "photo", width, height,
        onerror: async () => {
          parts.sheet.classList.add("gone");
          try { await api("picture", { key: image.key, ...place() }); } catch (error) { parts.gone.textContent = `No picture: ${error.message}. The numbers are those of the table.`; parts.gone.hidden = false; }
        } });
      const fine = Math.max(1, Math.round(FINE / Math.max(h, w)));
      parts.heat = el("canvas", { class: "heat", width: w * fine, height: h * fine, "aria-hidden": "true" });
      parts.marks = shape("svg", { class: "marks", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      for (const [x0, y0, x1, y1] of image.boxes) {
        for (const name of ["box outer", "box"]) parts.marks.append(shape("rect", { class: name, x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
      }
      parts.cell = [shape("rect", { class: "cell outer" }), shape("rect", { class: "cell" })];
      parts.marks.append(...parts.cell);
      parts.sheet = el("div", { class: "sheet" }, photo, parts.heat, parts.marks);
      parts.sheet.style.setProperty("--ratio", width / height);
      parts.gone = el("p", { class: "missing", hidden: true });
      const frame = el("div", { class: "frame", tabindex: 0, role: "application", id: "frame", "aria-label": `Image ${image.name}, ${h} by ${w} places: arrow keys choose one, as a click does`, onkeydown: keys });
      frame.append(parts.sheet);
      parts.sheet.addEventListener("click", (event) => {
        const box = parts.sheet.getBoundingClientRect();
        const x = Math.min(w - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * w)));
        const y = Math.min(h - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * h)));
        choose(y * w + x);
      });
      photo.src = known.no_pictures === null || image.row === null ? `api/picture?${new URLSearchParams({ key: image.key, layer: state.chosen.layer, encoder: state.chosen.encoder })}` : "data:,";
      parts.legend = el("figcaption", { id: "legend" });
      const tone = () => { photo.style.filter = `brightness(${bright.value}%) contrast(${contrast.value}%)`; };
      const range = (id, text) => el("input", { type: "range", id, min: 40, max: 250, value: 100, "aria-label": text, oninput: tone });
      const [bright, contrast] = [range("bright", "Brightness"), range("contrast", "Contrast")];
      const boxes = el("input", { type: "checkbox", id: "show-boxes", checked: true, onchange: () => parts.marks.classList.toggle("without", !boxes.checked) });
      return el("figure", { class: "image" },
        el("div", { class: "tools" },
          mammosae.choice("Size", "zoom", [["1", "fits"], ["2", "2 times"], ["4", "4 times"]], "1", (value) => zoom(Number(value))),
          el("div", { class: "field" }, el("label", { for: "bright" }, "Brightness"), bright),
          el("div", { class: "field" }, el("label", { for: "contrast" }, "Contrast"), contrast),
          image.boxes.length > 0 && el("div", { class: "field check" }, boxes, el("label", { for: "show-boxes" }, "Boxes"))),
        frame, parts.gone, parts.legend);
    };

    // The middle of what is seen, or the chosen place, stays in the middle.
    const zoom = (times) => {
      const frame = parts.sheet.parentElement;
      const [h, w] = image.grid;
      const middle = cell === null ? [(frame.scrollLeft + frame.clientWidth / 2) / frame.scrollWidth, (frame.scrollTop + frame.clientHeight / 2) / frame.scrollHeight]
        : [((cell % w) + 0.5) / w, (Math.floor(cell / w) + 0.5) / h];
      parts.sheet.style.setProperty("--times", times);
      frame.scrollTo(middle[0] * frame.scrollWidth - frame.clientWidth / 2, middle[1] * frame.scrollHeight - frame.clientHeight / 2);
    };

    const keys = (event) => {
      const [h, w] = image.grid;
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const [y, x] = cell === null ? [Math.floor(h / 2) - step[0], Math.floor(w / 2) - step[1]] : [Math.floor(cell / w), cell % w];
      choose(Math.min(h - 1, Math.max(0, y + step[0])) * w + Math.min(w - 1, Math.max(0, x + step[1])));
    };

    const choose = async (wanted) => {
      cell = wanted;
      drawCell();
      const mine = image;
      const found = await ask("place", "Reading the place …", () => api("place", { key: image.key, ...place(), cell: wanted }));
      if (found === null || image !== mine || cell !== wanted) return;
      here = found;
      drawPlace();
    };

    const drawCell = () => {
      const [height, width] = image.size;
      const [h, w] = image.grid;
      for (const rect of parts.cell) {
        const own = { x: ((cell % w) * width) / w, y: (Math.floor(cell / w) * height) / h, width: width / w, height: height / h };
        for (const [name, value] of Object.entries(own)) rect.setAttribute(name, value);
      }
    };

    const heat = async (latent) => {
      shown = latent;
      const context = parts.heat.getContext("2d");
      context.clearRect(0, 0, parts.heat.width, parts.heat.height);
      body.querySelectorAll("button.map").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.latent) === latent)));
      parts.legend.textContent = "";
      if (latent === null) return;
      const mine = image;
      const found = await ask("map", "Reading the map …", () => api("map", { key: image.key, ...place(), latent }));
      if (found === null || image !== mine || shown !== latent) return;
      const values = found.map?.flat() ?? [];
      const top = Math.max(0, ...values);
      if (!top) {
        parts.legend.replaceChildren(`The table kept no map of latent ${latent} for this image. `, whole());
        return;
      }
      paint(context, found.map, top);
      parts.legend.replaceChildren(`Orange: where latent ${latent} fires, at most ${number(top)}; the line runs at half of that.`, found.whole ? "" : " Only its strongest places were kept. ", found.whole ? "" : whole(), " ",
        el("button", { type: "button", class: "link", id: "no-map", onclick: () => heat(null) }, "Take the map away"));
    };

    // Between the middles of places values are interpolated; a white line beside a black one is seen on any gray.
    const paint = (context, map, top) => {
      const { width, height } = context.canvas;
      const [h, w] = image.grid;
      const axis = (n, size) => Array.from({ length: size }, (_, i) => {
        const at = Math.min(n - 1, Math.max(0, ((i + 0.5) * n) / size - 0.5));
        return [Math.floor(at), Math.min(n - 1, Math.floor(at) + 1), at - Math.floor(at)];
      });
      const columns = axis(w, width);
      const share = new Float32Array(width * height);
      axis(h, height).forEach(([y0, y1, dy], y) => columns.forEach(([x0, x1, dx], x) => {
        const value = (1 - dy) * ((1 - dx) * map[y0][x0] + dx * map[y0][x1]) + dy * ((1 - dx) * map[y1][x0] + dx * map[y1][x1]);
        share[y * width + x] = Math.max(0, value) / top;
      }));
      const pixels = context.createImageData(width, height);
      const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
      share.forEach((value, i) => {
        const [x, y] = [i % width, Math.floor(i / width)];
        const other = (dx, dy) => share[Math.min(height - 1, Math.max(0, y + dy)) * width + Math.min(width - 1, Math.max(0, x + dx))];
        const crossed = [[reach, 0], [-reach, 0], [0, reach], [0, -reach]].some(([dx, dy]) => (other(dx, dy) >= 0.5) !== (value >= 0.5));
        pixels.data.set(crossed ? (value >= 0.5 ? [255, 255, 255, 255] : [0, 0, 0, 255]) : [255, Math.round(90 + 110 * value), 20, Math.round(105 * Math.sqrt(value))], 4 * i);
      });
      context.putImageData(pixels, 0, 0);
    };

    const whole = () => image.linear && known.can_open && !image.whole && el("button", { type: "button", class: "link encode", onclick: () => show(image.key, { encode: true }) }, "Pass the image through the network to see all");

    // -- the logit

    const logitPart = () => {
      parts.now = el("p", { class: "now", id: "now" });
      parts.all = el("p", { class: "small", id: "all" });
      parts.sum = el("div", { id: "sum" });
      parts.network = el("p", { class: "small", role: "status", id: "network" });
      const { classes } = image;
      return el("section", { id: "logit" }, el("h2", {}, "Its logit"),
        image.logits.length > 1 && el("div", { class: "tools" }, mammosae.choice("Class", "output", classes.map((name, i) => [String(i), name]), String(output), (value) => { output = Number(value); draw(); if (here) drawPlace(); })),
        parts.now, parts.all, parts.sum,
        el("p", { class: "tools" },
          el("button", { type: "button", id: "ask-network", disabled: !known.can_open, onclick: askNetwork }, "Compare with the network"),
          el("button", { type: "button", id: "all-on", onclick: () => { off = new Set(); update(); } }, "All on"),
          el("button", { type: "button", id: "all-off", onclick: () => { off = new Set(image.latents); update(); } }, "All off")),
        parts.network);
    };

    const askNetwork = async () => {
      const mine = [...off].sort((one, other) => one - other);
      const picked = image;
      const found = await ask("network", "Running the network …", () => api("network", { key: image.key, ...place(), off: mine.join(",") }));
      if (found === null || picked !== image || mine.join() !== [...off].sort((one, other) => one - other).join()) return;
      const own = found.logits[output];
      const gap = image.linear ? Math.abs(own - sums()[output]) : null;
      parts.network.textContent = `The network itself${mine.length ? `, run with ${counted(mine.length, "latent")} removed at the layer,` : ""} gives ${logitText(own)} (probability ${fixed(probability(found.logits, output))})`
        + (gap === null ? "." : gap < 5e-4 ? `; the sum is the same to ${gap < 1e-12 ? "all digits" : number(gap)}.` : `; the sum is ${number(gap)} away from it.`);
    };

    // What follows from which latents are on: everything but the rows themselves.
    const update = () => {
      parts.network.textContent = "";
      body.querySelectorAll("input[data-latent]").forEach((box) => {
        const on = !off.has(Number(box.dataset.latent));
        box.checked = on;
        box.closest("tr").classList.toggle("off", !on);
      });
      const { logits } = image;
      const without = off.size ? `without ${counted(off.size, "latent")}` : "";
      if (!image.linear) {
        parts.now.replaceChildren(el("b", {}, logitText(logits[output])), ` probability ${fixed(probability(logits, output))}`);
        parts.all.textContent = "At an inner layer a logit is no sum over latents: take some off, and compare with the network to see it without them.";
        return;
      }
      const now = sums();
      parts.now.replaceChildren(el("b", {}, logitText(now[output])), ` probability ${fixed(probability(now, output))}`, without && el("span", { class: "badge" }, without));
      parts.all.textContent = off.size ? `With all latents: ${logitText(logits[output])}, probability ${fixed(probability(logits, output))}.` : "";
      const on = now[output] - image.bias[output] - image.error[output];
      const shown = image.latents.length - off.size;
      parts.sum.replaceChildren(el("table", { class: "sum" }, el("caption", { class: "sr" }, "The logit as a sum"), el("tbody", {}, [
        [`${counted(shown, "latent")}${off.size ? ` of ${count(image.latents.length)}` : ""} that fire${shown === 1 ? "s" : ""}`, on],
        ["What the SAE does not reconstruct", image.error[output]], ["Bias, without any latent", image.bias[output]], ["Sum", now[output]],
      ].map(([text, value]) => el("tr", { class: text === "Sum" ? "total" : null }, el("th", { scope: "row" }, text), el("td", { class: "number" }, logitText(value)))))));
    };

    const latentCells = (latent, cells, onImage) => {
      const name = parts.names.get(latent)?.[0];
      const own = info();
      return el("tr", {},
        el("td", {}, el("input", { type: "checkbox", "data-latent": latent, checked: !off.has(latent), "aria-label": `Latent ${latent} on`,
          onchange: (event) => { if (event.target.checked) off.delete(latent); else off.add(latent); update(); } })),
        el("th", { scope: "row" }, own ? el("a", { href: mammosae.latentAddress({ ...own }, latent, state.chosen.concept) }, String(latent)) : String(latent),
          name && el("span", { class: "reason", title: mammosae.nameScore(name) }, mammosae.readable(name.name))),
        cells.map(([text, wide]) => el("td", { class: wide ? "number wide" : "number" }, text)),
        el("td", {}, onImage && el("button", { type: "button", class: "map", "data-latent": latent, "aria-pressed": String(shown === latent), "aria-label": `Map of latent ${latent}`, onclick: () => heat(shown === latent ? null : latent) }, "Map")));
    };

    const latentTable = (headings, rows, label) => mammosae.scroller({ tabindex: 0, role: "region", "aria-label": label }, el("table", { class: "parts" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "On"), el("th", { scope: "col" }, "Latent"),
        headings.map(([text, title, wide]) => el("th", { scope: "col", title, class: wide ? "number wide" : "number" }, text)), el("th", { scope: "col" }, el("span", { class: "sr" }, "Map")))),
      el("tbody", {}, rows)));

    // -- the latents of the whole image

    let by = "adds";
    let listed = ROWS;
    const latentsPart = () => {
      parts.list = el("div", { id: "latents" });
      const orders = image.linear ? [["adds", "what it adds, by size"], ["above", "what it adds above usual"], ["maximum", "maximum"]] : [["maximum", "maximum"]];
      if (!image.linear) by = "maximum";
      const part = el("section", { id: "in-image" }, el("h2", {}, "Latents in the image"),
        el("div", { class: "tools" }, mammosae.choice("In order of", "by", orders, by, (value) => { by = value; listed = ROWS; drawList(); update(); })), parts.list);
      drawList();
      return part;
    };
    const above = (i) => contribution(i) - (image.usual[i] === null ? 0 : image.usual[i] * image.weight[i][output]);
    const drawList = () => {
      const value = { adds: contribution, above, maximum: (i) => image.maximum[i] }[by];
      const keyed = image.latents.map((_, i) => [Math.abs(value(i)), i]).sort((one, other) => other[0] - one[0]);
      const rows = keyed.slice(0, listed).map(([, i]) => latentCells(image.latents[i], image.linear
        ? [[logitText(contribution(i))], [image.usual[i] === null ? mammosae.MISSING : logitText(image.usual[i] * image.weight[i][output]), true], [number(image.maximum[i])]]
        : [[number(image.mean[i]), true], [number(image.maximum[i])]], true));
      const heads = image.linear ? [["Adds", "Its mean over the image times its weight: its exact share of the logit"], ["Usually", "What it adds in the training images on average", true], ["Maximum", "Its largest activation in the image"]]
        : [["Mean", "Over the places of the image", true], ["Maximum", "Its largest activation in the image"]];
      const left = keyed.length - rows.length;
      parts.list.replaceChildren(...latentTable(heads, rows, "Latents in the image"),
        el("p", { class: "tools" }, el("span", { class: "small" }, `${count(rows.length)} of ${counted(keyed.length, "latent")} that fire${keyed.length === 1 ? "s" : ""}`),
          left > 0 ? el("button", { type: "button", id: "more", onclick: () => { listed += 3 * ROWS; drawList(); update(); } }, `Show ${count(Math.min(left, 3 * ROWS))} more`) : ""));
    };

    // -- the latents at a place

    const placePart = () => {
      parts.place = el("div", { id: "place", "aria-live": "polite" }, el("p", { class: "missing" }, "Click a place of the image, or choose one with the arrow keys when the image has the focus."));
      return el("section", { id: "at-place" }, el("h2", {}, "At a place"), parts.place);
    };
    const drawPlace = () => {
      const [h, w] = image.grid;
      const said = `Row ${Math.floor(cell / w) + 1} of ${h}, column ${(cell % w) + 1} of ${w}: ${here.latents.length ? `${counted(here.latents.length, "latent")} fire${here.latents.length === 1 ? "s" : ""} here` : "no latent fires here"}`;
      const rows = here.latents.slice(0, 2 * ROWS).map((latent, j) => {
        const weight = image.linear ? image.weight[image.of.get(latent)]?.[output] : undefined;
        return latentCells(latent, [[number(here.activations[j])], ...(image.linear ? [[weight === undefined ? mammosae.MISSING : signed((here.activations[j] * weight) / (h * w))]] : [])], true);
      });
      parts.place.replaceChildren(el("p", {}, `${said}${here.complete ? "." : ", of those whose maps the table kept."}`,
        here.complete ? "" : [" ", whole() || "At an inner layer, or without the study's images, no more is known."]),
      ...(rows.length ? latentTable([["Activation", "At this place"], ...(image.linear ? [["Adds here", "Activation times weight, over the number of places: this place's exact share of the logit"]] : [])], rows, "Latents at the place") : []),
      here.latents.length > rows.length ? el("p", { class: "small" }, `and ${count(here.latents.length - rows.length)} weaker ones`) : "");
      update();
    };

    mammosae.add(root, controls, pager, status, failed, body);
    root.addEventListener("keydown", (event) => {
      if (event.target.closest("input, select, textarea, #frame") || event.ctrlKey || event.metaKey || event.altKey || pager.hidden) return;
      if (event.key === "n") go(at() + 1);
      if (event.key === "p") go(at() - 1);
    });
    drawControls();
    drawPager();
    await load();
    return "Images";
  };
})();
