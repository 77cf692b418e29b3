// What axe-core does not look for; the first of each kind.
const found = [], all = selector => [...document.querySelectorAll(selector)];
const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
for (const element of all("a[href^='#']"))
  if (!document.getElementById(element.getAttribute("href").slice(1))) say("leads nowhere", element);
for (const element of all("svg")) if (!element.closest("[role=img], [aria-hidden=true]")) say("picture without a role", element);
for (const element of all("table")) if (!element.caption) say("table without a caption", element);
// The contrast of the text in pictures.
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
for (const element of all("svg text")) {
  const color = getComputedStyle(element).fill, [one, other] = [light(channels(color)), light(under(element))];
  const contrast = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
  if (contrast < 4.5 && !seen.has(color)) { seen.add(color); say(`contrast ${contrast.toFixed(2)}`, element); }
}
return found;
