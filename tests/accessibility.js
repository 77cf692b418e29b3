// What a reader without sight, or with little of it, would miss; the first of each kind.
const found = [], all = selector => [...document.querySelectorAll(selector)];
const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
const name = element => element.getAttribute("aria-label") || element.textContent.trim() || element.closest("label")?.textContent.trim()
  || [...(element.labels || [])].map(label => label.textContent).join("")
  || (element.getAttribute("aria-labelledby") || "").split(" ").map(id => document.getElementById(id)?.textContent).join("");
if (!document.documentElement.lang) found.push("no language");
if (!document.title) found.push("no title");
for (const landmark of ["main", "header", "nav", "h1"])
  if (all(landmark).length !== 1) found.push(`${all(landmark).length} ${landmark}`);
for (const element of all("button, a, input, [role=region], [role=img], section"))
  if (!name(element)) say("no name", element);
for (const element of all("img")) if (!element.getAttribute("alt")) say("no alternative text", element);
for (const element of all("svg")) if (!element.closest("[role=img], [aria-hidden=true]")) say("picture without a role", element);
for (const element of all("th")) if (!element.scope) say("heading of a table without a scope", element);
for (const element of all("table")) if (!element.caption) say("table without a caption", element);
const ids = all("[id]").map(element => element.id);
for (const id of new Set(ids)) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`two elements ${id}`);
for (const element of all("a[href^='#']"))
  if (!document.getElementById(element.getAttribute("href").slice(1))) say("leads nowhere", element);
let level = 0;
for (const heading of all("h1, h2, h3, h4")) {
  const own = Number(heading.tagName[1]);
  if (own > level + 1) say("a level is left out before", heading);
  level = own;
}
const channels = color => color.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
const under = element => {
  for (let at = element; at; at = at.parentElement) {
    const color = channels(getComputedStyle(at).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
};
const seen = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
  const style = getComputedStyle(element), color = element.closest("svg") ? style.fill : style.color;
  const [one, other] = [light(channels(color)), light(under(element))];
  const contrast = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
  if (contrast < 4.5 && !seen.has(color)) { seen.add(color); say(`contrast ${contrast.toFixed(2)}`, element); }
}
return found;
