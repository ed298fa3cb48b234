"use strict";
// Files that the browser makes of what it shows; nothing is sent anywhere.

mammosae.download = (name, text) => {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = mammosae.el("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};

// A table as CSV: numbers in full, what is not known empty. `calm` texts are no formulas for a spreadsheet that opens them.
mammosae.csv = (headings, rows, { calm = true } = {}) => {
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number") return String(value);
    const text = calm && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${[headings, ...rows].map((row) => row.map(cell).join(",")).join("\n")}\n`;
};

// What a part of a file's name may be on every system.
mammosae.fileName = (...parts) => parts.map((part) => String(part).replace(/[^\w.-]+/g, "-").replace(/^-+|-+$/g, "")).filter(Boolean).join("-").slice(0, 120);
