// A hit of the search opens at its first place on the page, not at the top. Sphinx marks the places, and follows a link
// to a heading by itself. A place inside a folded answer stays folded: the reader opens it.
function showFound() {
  const places = [...document.querySelectorAll("article span.highlighted")];
  const isShown = (one) => one.getClientRects().length > 0;
  const place = places.find(isShown) ?? places[0]?.closest("details");
  place?.scrollIntoView({ block: "center", behavior: "instant" }); // a slow glide would stop where the place once was
}

// A widget or a picture that comes later moves the place: it is held until the reader moves.
function holdFound() {
  const holder = new ResizeObserver(showFound);
  holder.observe(document.querySelector("article"));
  for (const move of ["wheel", "touchstart", "pointerdown", "keydown"]) {
    addEventListener(move, () => holder.disconnect(), { once: true, passive: true });
  }
}

addEventListener("load", () => {
  if (!location.hash) setTimeout(holdFound, 20); // Sphinx marks 10 ms after it has read the page
});
