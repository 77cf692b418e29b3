// What the theme leaves to a mouse: code and tables that scroll can be scrolled by keyboard too, and the search has a name.
const reachable = one => { if (one.tabIndex !== 0) one.tabIndex = 0; };
document$.subscribe(() => {
  for (const one of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    reachable(one);
    new MutationObserver(() => reachable(one)).observe(one, { attributeFilter: ["tabindex"] });
  }
  for (const one of document.querySelectorAll(".md-code__nav")) one.setAttribute("role", "presentation");
  for (const one of document.querySelectorAll(".md-nav--secondary .md-nav[aria-label]"))
    one.setAttribute("aria-label", `On this page: ${one.getAttribute("aria-label")}`);
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
});
