"use strict";
// Starts the page: theme, routes, the search key.

(() => {
  const THEME = "mammosae-theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // A browser may forbid storage, as in a frame of another site: then the choice lasts as long as the page.
  const stored = () => {
    try { return localStorage.getItem(THEME); } catch { return null; }
  };
  const store = (value) => {
    try { localStorage.setItem(THEME, value); } catch { /* see above */ }
  };

  const setTheme = (theme) => {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = theme === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
    }
    mammosae.redraw?.();
  };
  const wanted = () => (["light", "dark"].includes(stored()) ? stored() : dark.matches ? "dark" : "light");
  setTheme(wanted());  // before anything is drawn
  dark.addEventListener("change", () => setTheme(wanted()));

  let turn = 0;

  const show = async (focus) => {
    const main = document.getElementById("main");
    const { title } = mammosae.data.index;
    const place = mammosae.parse(location.hash);
    const asked = place.page || "latents";
    const page = Object.hasOwn(mammosae.pages, asked) ? asked : null;
    const mine = (turn += 1);
    const root = mammosae.el("div", { class: `page ${page ?? "none"}` });
    mammosae.redraw = undefined;
    for (const link of document.querySelectorAll("header nav a")) {
      const name = link.id.replace("nav-", "");
      if (name === page || (name === "latents" && page === "latent")) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    main.replaceChildren(root);
    mammosae.announce();
    let name = null;
    try {
      if (page === null) {
        mammosae.add(root, mammosae.el("h1", {}, "There is no such page"), mammosae.el("p", {}, mammosae.el("a", { href: "#/" }, "All latents")));
      } else {
        name = await mammosae.pages[page](root, place);
      }
    } catch (error) {
      mammosae.add(root, mammosae.el("p", { class: "notice", role: "alert" }, `This page could not be shown: ${error.message}. Are all files of the Space there?`));
    }
    if (mine !== turn) return;
    document.title = name ? `${name} · ${title}` : title;
    if (focus) {
      window.scrollTo(0, 0);
      const heading = root.querySelector("h1");
      heading?.setAttribute("tabindex", -1);
      heading?.focus({ preventScroll: true });
    }
    document.body.dataset.ready = String(mine);
  };

  document.addEventListener("DOMContentLoaded", () => {
    const index = mammosae.data.index;
    setTheme(wanted());
    document.getElementById("theme").addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      store(theme);
      setTheme(theme);
    });
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault();  // "#main" is no place of this page's addresses
      document.getElementById("main").focus();
    });
    if (!index) {
      mammosae.add(document.getElementById("main"), mammosae.el("p", { class: "notice", role: "alert" }, "data/index.js is missing: build the Space again."));
      return;
    }
    document.getElementById("title").textContent = index.title;
    document.getElementById("nav-map").hidden = !index.studies.some((study) => Object.keys(study.maps ?? {}).length);
    document.getElementById("origin").textContent = `Findings: ${index.studies.map((study) => study.origin).join(" and ")}, `
      + `${index.studies.map((study) => study.created).join(" and ")}. ${index.studies.some((study) => study.data.pictures?.shown) ? "Images of single patients are shown only of data whose owner allows it" : "No image, no row of a single patient is in this page"}. Drawn by mammosae-plugin; research only, not a medical device.`;
    window.addEventListener("hashchange", () => show(true));
    window.addEventListener("resize", () => mammosae.redraw?.());
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, select, textarea");
      const search = document.getElementById("search");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        if (search) search.focus();
        else location.hash = mammosae.listed?.address ?? "#/";
      } else if (event.key === "Escape" && search && document.activeElement === search && search.value) {
        search.value = "";
        search.dispatchEvent(new Event("input", { bubbles: true }));
      }
    });
    show(false);
  });
})();
