"use strict";
document.documentElement.classList.remove("without-script");

// Tables: a click on a heading sorts; a search field keeps the rows that hold its words.
const keyOf = (row, column) => {
  const cell = row.cells[column], value = cell.dataset.value ?? cell.textContent.trim();
  const number = Number.parseFloat(value);
  return value !== "" && Number.isFinite(number) && cell.classList.contains("number") ? number : value;
};
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const was = heading.ariaSort, first = numeric ? "descending" : "ascending";
      const now = was === null || was === "none" ? first : was === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map(row => [keyOf(row, column), row]);
      rows.sort(([a], [b]) => {
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true}));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  }
}
for (const field of document.querySelectorAll("input[data-filters]")) {
  const list = document.getElementById(field.dataset.filters);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of list.tBodies ? list.tBodies[0].rows : list.children)
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
}

// Rows that open: sorted by a choice, opened by a link to them and for printing.
for (const choice of document.querySelectorAll("select[data-sorts]")) {
  const list = document.getElementById(choice.dataset.sorts);
  choice.addEventListener("change", () =>
    list.append(...[...list.children].sort((a, b) => b.dataset[choice.value] - a.dataset[choice.value])));
}
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", openTarget);
openTarget();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details.layer:not([open])")];
  for (const row of closed) row.open = true;
});
addEventListener("afterprint", () => { for (const row of closed) row.open = false; });

// Shapes: one step for the whole page, moved by any slider or by play; values under the pointer.
const holder = document.getElementById("data");
if (holder) {
  const data = JSON.parse(holder.textContent), last = data.steps.length - 1;
  const pictures = [...document.querySelectorAll("svg[data-layer]")].map(svg => {
    const [x0, x1, y0, y1, left, top, width, height] = svg.dataset.frame.split(" ").map(Number);
    const layer = data.layers[Number(svg.dataset.layer)];
    const px = x => left + width * (x - x0) / (x1 - x0);
    const py = y => top + height * (1 - Math.min(2, Math.max(-1, (y - y0) / (y1 - y0))));
    return {svg, layer, px, py, x0, x1, left, top, width, height, path: svg.querySelector("path.tuned"),
            error: svg.querySelector("path.error"), quantiles: svg.querySelector("path.quantiles")};
  });
  const at = (layer, index) => layer.x[0] + index * (layer.x[1] - layer.x[0]) / (layer.initial.length - 1);
  const line = (picture, values) => values.map((y, index) => y === null ? "" :
    `${index && values[index - 1] !== null ? "L" : "M"}${picture.px(at(picture.layer, index)).toFixed(1)} ${picture.py(y).toFixed(1)}`).join("");
  let now = last;
  const show = step => {
    now = step;
    for (const picture of pictures) {
      picture.path.setAttribute("d", line(picture, picture.layer.steps[step]));
      // Standard errors exist for the last step only.
      for (const area of [picture.error, picture.quantiles]) if (area) area.style.visibility = step === last ? "" : "hidden";
    }
    for (const control of document.querySelectorAll(".steps")) {
      control.querySelector("input").value = step;
      control.querySelector("output").textContent = data.steps[step];
    }
    for (const mark of document.querySelectorAll("circle.now")) {
      const point = mark.parentNode.querySelectorAll("circle.tuned")[step];
      if (point) { mark.setAttribute("cx", point.getAttribute("cx")); mark.setAttribute("cy", point.getAttribute("cy")); }
    }
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    for (const button of document.querySelectorAll(".steps button")) button.textContent = "Play";
  };
  for (const control of document.querySelectorAll(".steps")) {
    control.querySelector("input").addEventListener("input", event => { stop(); show(Number(event.target.value)); });
    control.querySelector("button").addEventListener("click", event => {
      if (timer !== null) { stop(); return; }
      show(0);
      event.target.textContent = "Stop";
      timer = setInterval(() => { if (now < last) show(now + 1); else stop(); }, 600);
    });
  }
  show(last);

  const text = value => value === null ? "not available" : Number(value.toPrecision(4)).toString();
  for (const picture of pictures.filter(one => one.svg.classList.contains("form"))) {
    const {svg, layer} = picture, readout = svg.closest("figure").querySelector(".readout");
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cross.setAttribute("class", "cross");
    svg.append(cross);
    let index = Math.round((layer.initial.length - 1) / 2);
    const describe = () => {
      const x = at(layer, index), tuned = layer.steps[now][index], error = now === last && layer.error ? layer.error[index] : null;
      cross.setAttribute("d", `M${picture.px(x).toFixed(1)} ${picture.top}v${picture.height}`);
      const error_text = now !== last || !layer.error ? "" : error === null ? " (undetermined)" : ` ± ${text(error)}`;
      readout.textContent = `input ${text(x)}: original (${layer.name}) ${text(layer.original[index])}, initial ${text(layer.initial[index])}, tuned ${text(tuned)}${error_text}`;
    };
    const clear = () => { cross.setAttribute("d", ""); readout.textContent = ""; };
    svg.addEventListener("pointermove", event => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const share = (point.x - picture.left) / picture.width;
      index = Math.round(Math.min(1, Math.max(0, share)) * (layer.initial.length - 1));
      describe();
    });
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
    svg.addEventListener("focus", describe);
    svg.addEventListener("keydown", event => {
      const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!move) return;
      index = Math.min(layer.initial.length - 1, Math.max(0, index + move));
      describe();
      event.preventDefault();
    });
    svg.setAttribute("tabindex", "0");
  }
}

// Downloads: a table as CSV, a figure as SVG or PNG.
const save = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const downloads = (place, name, kinds) => {
  const line = document.createElement("p");
  line.className = "downloads";
  line.append("Download ");
  for (const [kind, action] of kinds) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = kind;
    button.ariaLabel = `Download ${name} as ${kind}`;
    button.addEventListener("click", action);
    line.append(button);
  }
  place.after(line);
};
if (holder) {
  // A text that a spreadsheet would take for a formula begins with an apostrophe.
  const field = text => `"${(/^[=+@-]/.test(text) && !Number.isFinite(Number(text)) ? "'" : "") + text.replaceAll('"', '""')}"`;
  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length < 2) continue;
    downloads(table.parentNode, table.caption.textContent, [["CSV", () => {
      const lines = [...table.rows].map(row => [...row.cells].map(cell => field(cell.textContent.trim())).join(","));
      save(new Blob([lines.join("\r\n") + "\r\n"], {type: "text/csv"}), `${table.id}.csv`);
    }]]);
  }
  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "font-size", "font-family",
                  "text-anchor", "visibility", "opacity"];
  const standalone = svg => {
    const copy = svg.cloneNode(true), originals = svg.querySelectorAll("*");
    for (const [index, element] of copy.querySelectorAll("*").entries()) {
      const style = getComputedStyle(originals[index]);
      for (const name of STYLES) element.setAttribute(name, style.getPropertyValue(name));
    }
    const [, , width, height] = svg.getAttribute("viewBox").split(" ");
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    return [new XMLSerializer().serializeToString(copy), Number(width), Number(height)];
  };
  for (const svg of document.querySelectorAll("figure > svg")) {
    const name = (svg.closest("details")?.id ?? "identification"), type = "image/svg+xml";
    downloads(svg, svg.getAttribute("aria-label"), [
      ["SVG", () => save(new Blob([standalone(svg)[0]], {type}), `${name}.svg`)],
      ["PNG", () => {
        const [text, width, height] = standalone(svg), image = new Image(), canvas = document.createElement("canvas");
        canvas.width = 4 * width;
        canvas.height = 4 * height;
        image.onload = () => {
          const context = canvas.getContext("2d");
          context.fillStyle = getComputedStyle(document.body).backgroundColor;
          context.fillRect(0, 0, canvas.width, canvas.height);
          context.drawImage(image, 0, 0, canvas.width, canvas.height);
          canvas.toBlob(blob => save(blob, `${name}.png`));
        };
        image.src = `data:${type};charset=utf-8,${encodeURIComponent(text)}`;
      }],
    ]);
  }
}
