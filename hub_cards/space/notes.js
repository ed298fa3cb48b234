"use strict";
// Notes by readers: those of the findings, and those that are written here, to be taken along as a file or to a discussion on the Hub.

mammosae.notes = (() => {
  const { el, conceptName, counted } = mammosae;
  const KEPT = "mammosae-notes";
  const COLUMNS = ["latent", "text", "author", "label", "layer", "encoder", "concept", "confidence"];  // of `mammosae note --from`

  // The beginning of a long note; null of one that is short enough.
  const beginning = (text) => {
    const start = text.slice(0, 400).split("\n").slice(0, 6).join("\n");
    return text.length - start.length > 100 || text.split("\n").length > 8 ? `${start.trimEnd()} …` : null;
  };

  const noteText = (note) => {
    const badge = note.label && el("b", { class: "badge" }, note.label);
    const start = beginning(note.text);
    if (start === null) return el("p", { class: "note" }, badge, note.text);
    return el("details", { class: "note" },
      el("summary", {}, badge, el("span", { class: "start" }, start), " ", el("span", { class: "small" }, `(the whole note: ${counted(note.text.length, "character")})`)),
      el("div", { class: "whole", tabindex: 0 }, note.text));
  };

  const list = (notes) => (notes.length
    ? el("ul", { class: "notes" }, notes.map((note) => el("li", {},
      noteText(note),
      el("p", { class: "small" }, [note.author, note.created?.slice(0, 10), note.concept && conceptName(note.concept),
        note.confidence && `confidence ${note.confidence} of 5`].filter(Boolean).join(" · ")))))
    : el("p", { class: "missing" }, "No reader has written a note on this latent."));

  // What was written in this browser, by study; a browser may forbid storage, then as long as the page lasts.
  let memory = null;
  const all = () => {
    if (memory === null) {
      try { memory = JSON.parse(localStorage.getItem(KEPT)) ?? {}; } catch { memory = {}; }
    }
    return memory;
  };
  const drafts = (study) => (Array.isArray(all()[study.origin]) ? all()[study.origin] : []);
  const keep = (study, notes) => {
    all()[study.origin] = notes;
    try { localStorage.setItem(KEPT, JSON.stringify(memory)); } catch { /* see above */ }
  };

  // A new discussion of the findings' dataset, with title and text filled in.
  const discussion = (study, note) => {
    const title = `Note on latent ${note.latent} of ${note.layer}${note.label ? `: ${note.label}` : ""}`;
    const lines = [note.text, "", ...COLUMNS.filter((name) => name !== "text" && note[name] !== "").map((name) => `- ${name}: ${note[name]}`)];
    return `${study.link}/discussions/new?${new URLSearchParams({ title, description: lines.join("\n") })}`;
  };

  const form = (study, table, latent) => {
    const author = () => drafts(study).at(-1)?.author ?? "";
    const field = (name, text, node) => el("div", { class: "field" }, el("label", { for: `note-${name}` }, text), node);
    const input = (name, attributes = {}) => el("input", { id: `note-${name}`, autocomplete: "off", ...attributes });
    const text = el("textarea", { id: "note-text", rows: 4 });
    const label = input("label", { placeholder: "one or two words" });
    const who = input("author", { value: author() });
    const concept = el("select", { id: "note-concept" }, el("option", { value: "" }, "none"),
      table.info.concepts.map((one) => el("option", { value: one.concept }, conceptName(one.concept))));
    const sure = el("select", { id: "note-confidence" }, el("option", { value: "" }, "not said"), [1, 2, 3, 4, 5].map((one) => el("option", { value: one }, `${one} of 5`)));
    const told = el("p", { class: "small", role: "status" });
    const kept = el("div", { id: "drafts" });
    const hub = study.link && el("a", { id: "note-hub", target: "_blank", rel: "noopener", href: "#/" }, "Open a discussion on the Hub with it");

    const note = () => ({ latent, text: text.value.trim(), author: who.value.trim(), label: label.value.trim(), layer: table.info.layer,
      encoder: table.info.encoder, concept: concept.value, confidence: sure.value });
    const whole = () => {
      const own = note();
      const lacks = !own.text && !own.label ? "Write a text or a label first." : !own.author ? "Say who writes: a name or initials." : "";
      told.textContent = lacks;
      if (lacks) (own.author ? text : own.text || own.label ? who : text).focus();
      return lacks ? null : own;
    };
    const add = () => {
      const own = whole();
      if (own === null) return;
      keep(study, [...drafts(study), own]);
      text.value = "";
      label.value = "";
      told.textContent = "Kept in this browser; nothing was sent.";
      draw();
    };
    const draw = () => {
      const own = drafts(study);
      kept.replaceChildren(...(own.length ? [
        el("h3", {}, `Written here: ${counted(own.length, "note")}`),
        el("ul", { class: "notes" }, own.map((one, i) => el("li", {}, el("p", { class: "note" }, `Latent ${one.latent}, ${one.layer}: `, one.label && el("b", { class: "badge" }, one.label), one.text),
          el("p", { class: "small" }, `${one.author} `, el("button", { type: "button", class: "link", onclick: () => { keep(study, own.filter((_, j) => j !== i)); draw(); } }, "Remove"))))),
        el("p", {}, el("button", { type: "button", id: "notes-file", onclick: () => mammosae.download("notes.csv", mammosae.csv(COLUMNS, own.map((one) => COLUMNS.map((name) => one[name])), { calm: false })) },
          `Download notes.csv (${counted(own.length, "note")})`)),
        el("p", { class: "small" }, "Send the file to who has the study, who adds it with ", mammosae.copyable("mammosae note --from notes.csv --study STUDY")),
      ] : []));
    };
    draw();
    const link = () => { if (hub) hub.href = discussion(study, note()); };
    link();
    return el("details", { class: "write", open: drafts(study).length > 0 }, el("summary", {}, "Write a note"),
      el("form", { "aria-label": "Write a note", oninput: link, onchange: link, onsubmit: (event) => { event.preventDefault(); add(); } },
        el("p", { class: "small" }, "Notes travel with the findings under the name given: leave out whatever could name a patient. Nothing is sent from here."),
        field("text", "What you see", text),
        el("div", { class: "fields" }, field("label", "Label", label), field("author", "Who writes", who), field("concept", "Concept", concept), field("confidence", "How sure", sure)),
        el("p", { class: "tools" }, el("button", { type: "submit", id: "note-add" }, "Keep this note"),
          hub),
        told), kept);
  };

  return { list, form, discussion };
})();
