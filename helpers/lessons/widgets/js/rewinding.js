// The rewinding dial: drag the share α of the change that stays. Every point was measured; the dial invents nothing.

import { ask, element, ground, shape } from "./draw.js";
import { Chart } from "./chart.js";

const COLOURS = { trained: "var(--orange)", rewound: "var(--ice)" };

/** Limits that hold all numbers and zero, with a margin. */
function limits(numbers) {
  const [low, high] = [Math.min(0, ...numbers), Math.max(0, ...numbers)];
  const margin = 0.08 * (high - low || 1);
  return { low: low - (low < 0 ? margin : 0), high: high + margin };
}

function render({ model, el }) {
  const { trained, rewound } = model.get("data"); // rewound: [{share, point: [gain, forgetting], said}], from 0 to 1
  const { root, leave } = ground(model, el, "rewinding", "Rewinding dial", () => show());
  let at = rewound.findIndex(({ share }) => share === model.get("choice").share);

  const svg = shape("svg", { class: "chart", role: "img" });
  const dial = element("input", { type: "range", min: 0, max: rewound.length - 1, step: 1 });
  const said = element("p", { "aria-live": "polite" });
  const words = element("span", { class: "headline" });
  root.append(element("label", {}, words, dial), svg, said);

  function move(next) {
    at = next;
    ask(model, { share: rewound[at].share });
    show();
  }

  function show() {
    const here = rewound[at];
    const points = [...trained, ...rewound.map(({ point }) => point)];
    const [x, y] = [0, 1].map((axis) => limits(points.map((point) => point[axis])));
    const chart = new Chart(svg, { label: "gain on held-out text, nats per token", ...x },
      { label: "forgetting, nats per token", ...y }, root.clientWidth - 30);
    chart.line([[here.point[0], y.low], here.point, [x.low, here.point[1]]], "var(--soft)", { width: 1.5, dash: "3 4" });
    chart.line(trained, COLOURS.trained);
    for (const point of trained) chart.dot(point, COLOURS.trained, 3.5);
    chart.line(rewound.map(({ point }) => point), COLOURS.rewound, { dash: "8 5" });
    rewound.forEach(({ point }, i) => {
      const dot = chart.dot(point, COLOURS.rewound, 5);
      dot.addEventListener("click", () => move(i));
      dot.style.cursor = "pointer";
    });
    chart.dot(here.point, "var(--ink)", 8);
    chart.names([{ points: trained, words: "training", colour: COLOURS.trained },
      { points: rewound.map(({ point }) => point), words: "rewinding", colour: COLOURS.rewound }]);
    svg.setAttribute("aria-label", here.said);
    words.replaceChildren(element("b", {}, `α = ${here.share}`), " of the change stays (0: the base, 1: the tuned model)");
    dial.setAttribute("aria-valuetext", `α = ${here.share}`);
    said.textContent = here.said;
  }

  dial.value = at;
  dial.addEventListener("input", () => move(Number(dial.value)));
  show();
  return leave;
}

export default { render };
