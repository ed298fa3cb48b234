"use strict";
{
  // What is folded opens when an address leads into it, and in print.
  const follow = (hash) => {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    if (!target) return;
    for (let place = target; place; place = place.parentElement) if (place.matches("details")) place.open = true;
    for (const own of target.querySelectorAll(":scope > details")) own.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) follow(link.hash);
  });
  const folded = [];
  addEventListener("beforeprint", () => {
    folded.push(...document.querySelectorAll("details:not([open])"));
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => { while (folded.length) folded.pop().open = false; });

  // Figures further down come when the page is there, and are then there for print too.
  addEventListener("load", () => {
    for (const image of document.querySelectorAll("img[loading]")) image.loading = "eager";
  });

  // The contents are folded where there is no room for them at the side.
  const contents = document.querySelector("nav details");
  const narrow = matchMedia("(max-width: 64rem)");
  const fold = () => { if (contents) contents.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  contents?.addEventListener("click", (event) => { if (narrow.matches && event.target.closest("a")) contents.open = false; });
  if (location.hash) follow(location.hash);

  // What is wider than the page can be scrolled with the keyboard too.
  const reach = () => {
    for (const part of document.querySelectorAll(".scroll, .card")) {
      if (part.scrollWidth <= part.clientWidth || part.hasAttribute("tabindex")) continue;
      part.tabIndex = 0;
      part.setAttribute("role", "group");
      part.setAttribute("aria-label", "Wider than the page, can be scrolled");
    }
  };
  for (const when of ["load", "resize"]) addEventListener(when, reach);
  document.addEventListener("toggle", reach, true);

  // A button at every command that copies it; where the browser does not allow that, it selects the text.
  for (const text of document.querySelectorAll("pre.copy")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
    });
    text.before(button);
  }
}
