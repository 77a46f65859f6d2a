// A hit of the search opens at its first place on the page, not at the top. Sphinx marks the places, and follows a link
// to a heading by itself. A place inside a folded answer stays folded: the reader opens it.
function showFound() {
  const places = [...document.querySelectorAll("article span.highlighted")];
  const isShown = (one) => one.getClientRects().length > 0;
  const place = places.find(isShown) ?? places[0]?.closest("details");
  place?.scrollIntoView({ block: "center" });
}

addEventListener("load", () => {
  if (!location.hash) setTimeout(showFound, 20); // Sphinx marks 10 ms after it has read the page
});
