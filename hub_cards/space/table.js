"use strict";
// The table of latents: filters, search, sorting, pages of rows. Its whole state lies in the address.

mammosae.pages.latents = (() => {
  const { columns, el } = mammosae;
  const PAGE = 50;

  // What the last shown table listed, in its order, so that a latent's page can lead to the one before and after it.
  mammosae.listed = { address: "#/", order: [] };

  const defaults = (study) => {
    const layer = study.primary;
    const tables = study.tables.filter((table) => table.layer === layer);
    return { layer, concept: tables[0].concepts[0].concept };
  };

  // The encoder that the layer's SAE was trained on, or else the last: studies name the plain one first.
  const usualEncoder = (study, tables) => {
    const last = tables[tables.length - 1];
    const trainedOn = String(study.sae[last.layer]?.trained_on ?? "").split("/")[0];
    return (tables.find((table) => table.layer === last.layer && table.model === trainedOn) ?? last).encoder;
  };

  const read = (params) => {
    const index = mammosae.data.index;
    const number = (name, fallback) => {
      const value = Number(params.get(name) ?? fallback);
      return Number.isFinite(value) && value >= 0 ? value : fallback;
    };
    const study = Math.min(index.studies.length, Math.max(1, Math.floor(number("study", 1)))) - 1;
    const given = index.studies[study];
    const usual = defaults(given);
    const layer = given.layers.includes(params.get("layer")) || params.get("layer") === "all" ? params.get("layer") : usual.layer;
    const tables = given.tables.filter((table) => layer === "all" || table.layer === layer);
    const concepts = [...new Set(tables.flatMap((table) => table.concepts.map((entry) => entry.concept)))];
    const concept = concepts.includes(params.get("concept")) ? params.get("concept") : concepts[0];
    const withConcept = tables.filter((table) => table.concepts.some((entry) => entry.concept === concept));
    const encoders = [...new Set(withConcept.map((table) => table.encoder))];
    // Ranks are within an encoder, so that one is listed unless all are asked for.
    const wanted = params.get("encoder") ?? "";  // kept where the concept has no such encoder, for the way back
    const encoder = [...encoders, "all"].includes(wanted) ? wanted : usualEncoder(given, withConcept);
    const chosen = withConcept.filter((table) => encoder === "all" || table.encoder === encoder);
    const classes = chosen[0].concepts.find((entry) => entry.concept === concept).n_images.length;
    return {
      study, layer, concept, encoder, concepts, encoders, classes, wanted,
      tables: chosen,
      class: Math.min(classes - 1, Math.floor(number("class", classes - 1))),
      least: Math.min(100, number("least", 0)),
      noted: params.get("noted") === "1",
      dead: params.get("dead") === "1",
      text: params.get("text") ?? "",
      columns: params.get("columns") ?? "",
      sort: params.get("sort") ?? "rank",
      direction: params.get("direction"),
      page: Math.max(1, Math.floor(number("page", 1))),
    };
  };

  const address = (state) => {
    const study = mammosae.data.index.studies[state.study];
    return mammosae.address([], {
      study: state.study ? state.study + 1 : "",
      layer: state.layer === defaults(study).layer ? "" : state.layer,
      encoder: state.wanted,
      concept: state.concept === state.concepts[0] ? "" : state.concept,
      class: state.class === state.classes - 1 ? "" : state.class,
      least: state.least || "",
      noted: state.noted ? 1 : "",
      dead: state.dead ? 1 : "",
      text: state.text,
      columns: state.columns,
      sort: state.sort === "rank" ? "" : state.sort,
      direction: state.direction === columns.all(state).find((column) => column.key === state.sort)?.first ? "" : state.direction,
      page: state.page > 1 ? state.page : "",
    });
  };

  // A number finds the latents of that number, words are sought in names and notes; several numbers are alternatives.
  const matcher = (text) => {
    const words = mammosae.fold(text).split(/[\s,;]+/).filter(Boolean);
    const numbers = new Set(words.filter((word) => /^\d+$/.test(word)).map(Number));
    const others = words.filter((word) => !/^\d+$/.test(word));
    return (table, row) => {
      if (numbers.size && !numbers.has(table.latent[row])) return false;
      if (!others.length) return true;
      const found = wordsOf(table).get(table.latent[row]);
      return found !== undefined && others.every((word) => found.includes(word));
    };
  };

  // What is sought in, by latent: made once, when words are first sought.
  const wordsOf = (table) => {
    if (!table.words) {
      table.words = new Map();
      for (const latent of new Set([...table.names.keys(), ...table.notes.keys()])) {
        table.words.set(latent, [...(table.names.get(latent) ?? []).flatMap((name) => [name.name, mammosae.readable(name.name)]),
          ...(table.notes.get(latent) ?? []).flatMap((note) => [note.label, note.text, note.author])].map((text) => mammosae.fold(text ?? "")).join(" "));
      }
    }
    return table.words;
  };

  // The rows that pass the filters, sorted: [table number, row] as two typed arrays.
  const select = (state, tables) => {
    const matches = matcher(state.text);
    const least = state.least / 100;
    const rows = [];
    let silent = 0;  // dead latents that would be listed otherwise
    tables.forEach((table, t) => {
      for (let row = 0; row < table.size; row += 1) {
        if (least > 0 && !(table.rate[row] >= least)) continue;
        if (state.noted && !table.notes.has(table.latent[row])) continue;
        if (!matches(table, row)) continue;
        if (!state.dead && mammosae.isDead(table, row)) {
          silent += 1;
          continue;
        }
        rows.push([t, row]);
      }
    });
    const column = columns.all(state).find((candidate) => candidate.key === state.sort) ?? columns.all(state).find((candidate) => candidate.key === "rank");
    const sign = (state.direction ?? column.first) === "up" ? 1 : -1;
    const keys = Float64Array.from(rows, ([t, row]) => (column.by ?? column.of)(tables[t], row));
    const order = Uint32Array.from(rows, (_, i) => i);
    // Places in different rankings say nothing beside each other: those of an encoder stay together.
    const together = ["rank", "score"].includes(column.key);
    order.sort((one, other) => {
      if (together && rows[one][0] !== rows[other][0]) return rows[one][0] - rows[other][0];
      const [a, b] = [keys[one], keys[other]];
      if (a !== b) {
        // What is not known comes last in either order.
        if (Number.isNaN(a)) return Number.isNaN(b) ? one - other : 1;
        if (Number.isNaN(b)) return -1;
        if (a !== b) return sign * (a - b);
      }
      return one - other;
    });
    return { rows: Array.from(order, (i) => rows[i]), silent, total: tables.reduce((sum, table) => sum + table.size, 0) };
  };

  // How many latents are listed of how many: through several encoders each of an SAE's latents has a row for each.
  const tally = (found, tables) => {
    if (tables.length < 2) return `${mammosae.count(found.rows.length)} of ${mammosae.counted(found.total, "latent")}`;
    const place = ({ info }) => `${info.layer} ${info.sae ?? info.encoder}`;
    const own = new Map(tables.map((table) => [place(table), table.size]));
    const listed = new Set(found.rows.map(([t, row]) => `${place(tables[t])} ${tables[t].latent[row]}`));
    const all = [...own.values()].reduce((sum, size) => sum + size, 0);
    return `${mammosae.count(listed.size)} of ${mammosae.counted(all, "latent")} in ${mammosae.counted(found.rows.length, "row")}, one for each encoder`;
  };

  // The arrow stands where it does not push the heading off its column's edge.
  const arrowBeside = (column, arrow) => (column.number ? [arrow, column.text] : [column.text, arrow]);

  const noteText = (notes) => {
    const labels = [...new Set(notes.map((note) => note.label).filter(Boolean))];
    const first = labels.length ? labels.join(", ") : notes[0].text;
    return `${first.length > 40 ? `${first.slice(0, 39)}…` : first}${notes.length > 1 ? ` (${notes.length})` : ""}`;
  };

  return async (root, { params }) => {
    const index = mammosae.data.index;
    let state = read(params);
    let tables = [];
    let found = { rows: [], silent: 0, total: 0 };
    let active = 0;
    let loads = 0;
    let busy = false;  // while it is, the tables are those of an earlier choice

    const fields = el("div", { class: "fields" });
    const checks = el("div", { class: "checks" },
      el("div", { class: "field check" },
        el("input", { id: "noted", type: "checkbox", checked: state.noted, onchange: (event) => change({ noted: event.target.checked }) }),
        el("label", { for: "noted" }, "Only with notes")),
      el("div", { class: "field check" },
        el("input", { id: "dead", type: "checkbox", checked: state.dead, onchange: (event) => change({ dead: event.target.checked }) }),
        el("label", { for: "dead" }, "Show latents that never fire")));
    // On a phone the filters would fill the first screen: there they are folded away.
    const form = el("form", { class: "filters", role: "search", "aria-label": "Choose latents", onsubmit: (event) => event.preventDefault() },
      el("div", { class: "first" },
        el("div", { class: "field grow" }, el("label", { for: "search" }, "Search (key /): latent number, or words of names and notes"),
          el("input", { id: "search", type: "search", value: state.text, placeholder: "1203, or artefact", autocomplete: "off", spellcheck: "false",
            oninput: (event) => change({ text: event.target.value }) }))),
      el("details", { open: !window.matchMedia("(max-width: 44rem)").matches }, el("summary", {}, "Filters and sorting"), el("div", { class: "folded" }, fields, checks)));
    const status = el("p", { class: "status", id: "status", role: "status" });
    const legend = el("p", { class: "small", id: "legend" });
    const [hint, box] = mammosae.scroller({ id: "list" });
    box.classList.add("list");
    const picker = el("details", { class: "picker" }, el("summary", {}, "Columns"));
    const file = () => {
      const encoder = state.encoders.length > 1 && state.encoder === "all" ? "all-encoders" : state.tables[0].encoder;
      mammosae.download(`${mammosae.fileName("latents", state.layer, encoder, state.concept)}.csv`, columns.asCsv(state, tables, found.rows));
    };
    const parquet = el("span", { id: "parquet", hidden: true });
    const tools = el("div", { class: "tools" }, picker,
      el("button", { type: "button", id: "csv", onclick: file, title: "All rows that pass the filters, in this order, with the columns shown; numbers in full" }, "Download CSV"), parquet);
    const pager = el("nav", { class: "pager", "aria-label": "Pages of the table" });
    mammosae.add(root,
      el("h1", {}, "Latents"),
      el("p", { class: "lead" }, el("span", { class: "wide" }, "A latent is one unit of the sparse autoencoder (SAE). It is silent or fires at each place of an image. The rank says how far it stands out in training images with a finding; box AP, whether it fires where the finding was marked. "),
        el("a", { href: "#/study" }, "All terms")),
      form, el("div", { class: "above" }, status, tools), hint, box, legend, pager);

    const change = (values) => {
      const before = state;
      state = read(new URLSearchParams(mammosae.parse(address({ ...state, page: 1, ...values })).params));
      mammosae.remember(address(state));
      const reload = ["study", "layer", "encoder", "concept"].some((name) => before[name] !== state[name]);
      if (reload || before.class !== state.class) filters();
      if (reload || before.columns !== state.columns) pick();
      if (reload) return load();
      return busy ? null : refresh();
    };

    // Which columns there are depends on the study and the concept.
    const pick = () => {
      const focused = document.activeElement?.id;
      picker.replaceChildren(picker.firstChild, columns.picker(state, (wanted) => change({ columns: wanted })));
      if (focused) document.getElementById(focused)?.focus();
      const files = index.studies[state.study].parquet;
      parquet.hidden = !files;
      parquet.replaceChildren(...(files ? [el("a", { href: files.latents, rel: "noopener" }, "Parquet on the Hub")] : []));
    };

    const filters = () => {
      const study = index.studies[state.study];
      const focused = document.activeElement?.id;
      const all = (values, word) => (values.length > 1 ? [["all", `All ${word}`]] : []);
      fields.replaceChildren(...[
        index.studies.length > 1 && mammosae.choice("Study", "study", index.studies.map((_, i) => [String(i + 1), mammosae.studyName(i)]),
          String(state.study + 1), (value) => change({ study: Number(value) - 1, layer: "", wanted: "", concept: "" }), { long: true }),
        mammosae.choice("Concept", "concept", state.concepts.map((name) => [name, mammosae.conceptName(name)]), state.concept,
          (concept) => change({ concept, class: 99 }), { long: true }),
        mammosae.choice("Class ranked", "class",
          Array.from({ length: state.classes }, (_, i) => [String(i), mammosae.className(i, state.classes)]), String(state.class),
          (value) => change({ class: Number(value) })),
        mammosae.choice("Layer", "layer", [...all(study.layers, "layers"), ...study.layers.map((name) => [name, name])], state.layer,
          (layer) => change({ layer })),
        mammosae.choice("Encoder", "encoder", [...all(state.encoders, "encoders"), ...state.encoders.map((name) => [name, mammosae.encoderName(name)])],
          state.encoders.length === 1 ? state.encoders[0] : state.encoder, (wanted) => change({ wanted }), { long: true }),
        el("div", { class: "field" }, el("label", { for: "least" }, "Fires in at least (% of images)"),
          el("input", { id: "least", type: "number", min: 0, max: 100, step: "any", inputmode: "decimal", value: state.least || "", placeholder: "0",
            oninput: (event) => change({ least: Number(event.target.value) || 0 }) })),
        el("div", { class: "field narrow" }, el("label", { for: "sort" }, "Sort by"),
          el("select", { id: "sort", onchange: (event) => change({ sort: event.target.value, direction: null }) },
            columns.all(state).map((column) => el("option", { value: column.key, selected: column.key === state.sort }, column.text)))),
      ].filter(Boolean));
      if (focused) document.getElementById(focused)?.focus();
    };

    const load = async () => {
      const wanted = state;
      const mine = (loads += 1);
      busy = true;
      status.textContent = "Reading the data …";
      box.setAttribute("aria-busy", "true");
      const read = await Promise.all(wanted.tables.map((info) => mammosae.table(info, wanted.concept)));
      if (mine !== loads) return;  // overtaken by a later choice
      busy = false;
      tables = read;
      refresh();
      box.setAttribute("aria-busy", "false");
    };

    const refresh = () => {
      found = select(state, tables);
      const last = Math.max(1, Math.ceil(found.rows.length / PAGE));
      if (state.page > last) state.page = last;
      active = 0;
      mammosae.listed = { address: address(state), study: state.study, concept: state.concept, order: found.rows.map(([t, row]) => [tables[t].info, tables[t].latent[row]]) };
      draw();
    };

    const sortBy = (column) => {
      const current = state.direction ?? columns.all(state).find((one) => one.key === state.sort)?.first;
      const direction = column.key === state.sort ? (current === "up" ? "down" : "up") : column.first;
      change({ sort: column.key, direction });
      box.querySelector(`th[data-key="${column.key}"] button`)?.focus();
    };

    const cell = (column, table, row) => {
      if (column.key === "encoder") return mammosae.encoderName(table.info.encoder);
      if (column.key === "layer") return table.info.layer;
      if (column.key === "notes") {
        const notes = table.notes.get(table.latent[row]);
        return notes ? noteText(notes) : "";
      }
      if (column.show) return [column.show(table, row)].flat().map((part) => (part === mammosae.SUPPRESSED ? hidden(table) : part));
      const value = column.of(table, row);
      if (!Number.isNaN(value)) return column.write(value);
      return column.hidden?.(table, row) ? hidden(table) : mammosae.MISSING;
    };

    const hidden = (table) => el("i", { title: `Hidden: ${mammosae.fewerThan(table)} behind it` }, mammosae.SUPPRESSED);

    const draw = () => {
      const shown = columns.shown(state);
      const direction = state.direction ?? shown.find((column) => column.key === state.sort)?.first;
      const start = (state.page - 1) * PAGE;
      const rows = found.rows.slice(start, start + PAGE);
      const head = el("tr", {}, shown.map((column) => {
        const sorted = column.key === state.sort;
        return el("th", {
          scope: "col", "data-key": column.key, class: [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null,
          "aria-sort": sorted ? (direction === "up" ? "ascending" : "descending") : "none",
        }, el("button", { type: "button", title: column.title, onclick: () => sortBy(column) },
          ...arrowBeside(column, el("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (direction === "up" ? "▲" : "▼") : ""))));
      }));
      const body = rows.map(([t, row], i) => {
        const table = tables[t];
        const href = mammosae.latentAddress(table.info, table.latent[row], state.concept);
        return el("tr", { class: mammosae.isDead(table, row) && "dead", "aria-rowindex": start + i + 2, onclick: (event) => { if (!event.target.closest("a") && !String(getSelection())) location.hash = href; } },
          shown.map((column) => (column.key === "latent"
            ? el("th", { scope: "row" }, el("a", { href, tabindex: i === active ? 0 : -1 }, String(table.latent[row])))
            : el("td", { class: [column.number && "number", column.wide && "wide", column.key].filter(Boolean).join(" ") }, cell(column, table, row)))));
      });
      box.replaceChildren(rows.length
        ? el("table", { class: "latents", "aria-rowcount": found.rows.length + 1, "aria-describedby": "status" }, el("thead", {}, head), el("tbody", {}, body))
        : el("p", { class: "missing" }, "No latent passes these filters",
          found.silent ? `, but for ${mammosae.counted(found.silent, "latent")} that never ${found.silent === 1 ? "fires" : "fire"}. ` : ". ", el("a", { href: "#/" }, "Clear the filters"),
          state.encoders.length > 1 && state.encoder !== "all" && [" or ", el("a", { href: address({ ...state, wanted: "all" }) }, "look in all encoders")]));
      const sorted = shown.find((column) => column.key === state.sort);
      status.textContent = tally(found, tables)
        + `${rows.length ? `, ${mammosae.count(start + 1)}–${mammosae.count(start + rows.length)} shown, sorted by ${sorted?.sorted ?? mammosae.inSentence(sorted?.text ?? "Rank")} (${direction === "up" ? "rising" : "falling"})` : ""}.`
        + (found.silent ? ` ${mammosae.count(found.silent)} ${tables.length > 1 ? "rows of latents " : ""}that never ${found.silent === 1 ? "fires is" : "fire are"} left out.` : "");
      const few = rows.length && mammosae.fewerThan(tables[rows[0][0]]);
      legend.textContent = box.querySelector("td i")
        ? `“${mammosae.SUPPRESSED}”: a class has ${few}, or the latent fires, or is silent, in ${few}.` : "";
      const last = Math.ceil(found.rows.length / PAGE);
      const go = (page, text, id, wide) => el("button", { type: "button", id, class: wide && "wide", disabled: page < 1 || page > last || page === state.page, onclick: () => turn(page) }, text);
      pager.replaceChildren(...(last > 1 ? [
        go(1, "First", "page-first", true), go(state.page - 1, "Previous", "page-previous"),
        el("span", {}, `Page ${mammosae.count(state.page)} of ${mammosae.count(last)}`),
        go(state.page + 1, "Next", "page-next"), go(last, "Last", "page-last", true)] : []));
    };

    const turn = (page) => {
      if (busy) return;
      const focused = document.activeElement?.id;
      state.page = page;
      active = 0;
      mammosae.remember(address(state));
      mammosae.listed.address = address(state);
      draw();
      box.scrollIntoView({ block: "nearest" });
      if (focused) document.getElementById(focused)?.focus();
    };

    // Arrow keys, Home, End and Page keys move through the rows; Enter follows the row's link as everywhere.
    box.addEventListener("keydown", (event) => {
      const links = [...box.querySelectorAll("tbody a")];
      const at = links.indexOf(document.activeElement);
      if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
      const last = Math.ceil(found.rows.length / PAGE);
      const focus = (i) => {
        const now = [...box.querySelectorAll("tbody a")];
        active = Math.min(now.length - 1, Math.max(0, i));
        now.forEach((link, j) => link.setAttribute("tabindex", j === active ? 0 : -1));
        now[active]?.focus();
      };
      const moves = {
        ArrowDown: () => (at + 1 < links.length ? focus(at + 1) : state.page < last && (turn(state.page + 1), focus(0))),
        ArrowUp: () => (at > 0 ? focus(at - 1) : state.page > 1 && (turn(state.page - 1), focus(PAGE - 1))),
        Home: () => focus(0),
        End: () => focus(links.length - 1),
        PageDown: () => (state.page < last ? (turn(state.page + 1), focus(at)) : focus(links.length - 1)),
        PageUp: () => (state.page > 1 ? (turn(state.page - 1), focus(at)) : focus(0)),
      };
      if (moves[event.key]) {
        event.preventDefault();
        moves[event.key]();
      }
    });

    filters();
    pick();
    await load();
  };
})();
