// A reader without a mouse scrolls a wide table, program, figure or formula with the arrow keys: it must take the focus.
const boxes = ".highlight pre, .output pre, .cell_output, .table-wrapper, .formula, article p:has(> img)";

function markWide() {
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}

addEventListener("load", markWide); // pictures have their width only then
addEventListener("resize", markWide);
addEventListener("toggle", markWide, true);
markWide();
