// "Equal steps or equal gain?": recorded runs, read at a level that the reader drags.

import { Chart } from "./chart.js";
import { byId, choices, element, loadJson, start } from "./page.js";

const PLANS = {
  full: { words: "full training", colour: "var(--orange)" },
  "attention+embeddings": { words: "attention + embeddings frozen", short: "attn + emb frozen", colour: "var(--ice)" },
  "only-attention": { words: "only attention trains", short: "only attention", colour: "var(--green)" },
  "only-mlp-out": { words: "only MLP-out trains", short: "only MLP-out", colour: "var(--purple)" },
};
const TEXTS = [{ value: "alice", label: "text: Alice" }, { value: "edgar", label: "text: Edgar" }];
const RATES = [
  { value: "keep", label: "each at the rate that forgets least" },
  { value: "learn", label: "each at the rate that learns most" },
];
const AXES = {
  steps: { label: "steps", level: (x) => `after ${x} steps each` },
  gains: { label: "gain on held-out text, nats per token", level: (x) => `where each has gained ${x.toFixed(3)}` },
};
const MAIN = ["full", "attention+embeddings"]; // the two that the answer compares

/** Forgetting where a run first reaches a level of steps or gain, linear in between; null where it never does. */
export function forgettingAt(run, axis, level) {
  const { [axis]: xs, forgetting } = run;
  const i = xs.findIndex((x) => x >= level);
  if (i < 0) return null;
  if (i === 0) return forgetting[0];
  return forgetting[i - 1] + ((level - xs[i - 1]) / (xs[i] - xs[i - 1])) * (forgetting[i] - forgetting[i - 1]);
}

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

/** Mean forgetting of a plan's runs at a level; null unless every run reaches it. */
function meanAt(entry, axis, level) {
  const found = entry.runs.map((run) => forgettingAt(run, axis, level));
  return found.includes(null) ? null : mean(found);
}

/** The largest level that every run of a plan reaches. */
function reach(entry, axis) {
  return Math.min(...entry.runs.map((run) => Math.max(...run[axis])));
}

/** A plan's mean line: as far as all its runs go. */
function meanLine(entry, axis) {
  const end = reach(entry, axis);
  const levels = Array.from({ length: 41 }, (_, i) => (end * i) / 40);
  return levels.map((x) => [x, meanAt(entry, axis, x)]).filter(([, y]) => y !== null);
}

await start(async () => {
  const { smallest, entries } = await loadJson("records.json");
  const state = { text: "alice", choice: "keep", charts: {} };
  const shown = () => entries.filter(({ text, choice }) => text === state.text && choice === state.choice);

  function draw(axis) {
    const level = Number(byId(`${axis}-level`).value);
    const lines = shown().map((entry) => ({ ...PLANS[entry.plan], entry, points: meanLine(entry, axis) }));
    const edge = 1.08 * Math.max(...lines.flatMap(({ points }) => points.map(([x]) => x)));
    const top = 1.12 * Math.max(...lines.flatMap(({ points }) => points.map(([, y]) => y)));
    const chart = new Chart(byId(`${axis}-chart`), { label: AXES[axis].label, low: 0, high: edge },
      { label: "forgetting, nats per token", low: 0, high: top });
    state.charts[axis] = chart;
    for (const { points, colour } of lines) chart.line(points, colour);
    chart.level(level);
    for (const { points, colour, entry } of lines) {
      const y = meanAt(entry, axis, level);
      if (y !== null) chart.dot([level, y], colour);
    }
    chart.names(lines.map(({ points, words, short, colour }) => ({ points, words: short ?? words, colour })));
    byId(`${axis}-label`).textContent = `Read ${AXES[axis].level(level)}`;
    showOrder(axis, level);
    showAnswer(axis, level);
  }

  /** Plans in the order of their forgetting; those that do not get so far come last, without a number. */
  function showOrder(axis, level) {
    const read = shown().map((entry) => ({ entry, y: meanAt(entry, axis, level) }));
    read.sort((a, b) => (a.y ?? Infinity) - (b.y ?? Infinity));
    const largest = Math.max(...read.map(({ y }) => y ?? 0));
    const rows = read.map(({ entry, y }, i) => {
      const { words, colour } = PLANS[entry.plan];
      const row = element("li", {}, element("b", {}, y === null ? "" : `${i + 1}`),
        element("span", { style: `color: ${colour}; font-weight: 600` }, words));
      if (y === null) row.append(element("span", { class: "absent" }, "not all its runs get here"));
      else row.append(element("span", { class: "value" }, y.toFixed(3)),
        element("span", { class: "meter", style: `color: ${colour}; width: ${(100 * y) / largest}%` }));
      return row;
    });
    byId(`${axis}-order`).replaceChildren(...rows);
  }

  /** The sentence: does freezing forget less than full training here, by the mean over the same seeds? */
  function showAnswer(axis, level) {
    const [full, frozen] = MAIN.map((plan) => meanAt(shown().find((entry) => entry.plan === plan), axis, level));
    const box = byId(`${axis}-answer`);
    const difference = frozen - full;
    const isSmall = Math.abs(difference) < smallest[state.text];
    const verdict = isSmall ? "No difference that counts" : difference < 0 ? "Freezing forgets less" : "Freezing forgets more";
    const colour = isSmall ? "var(--line)" : difference < 0 ? "var(--ice)" : "var(--orange)";
    box.style.borderLeftColor = colour;
    box.replaceChildren(element("b", {}, `${verdict}. `), `Attention + embeddings frozen: ${frozen.toFixed(3)}; full ` +
      `training: ${full.toFixed(3)} nats per token, ${AXES[axis].level(level)}.`);
  }

  /** Levels that both main plans reach in all their runs. */
  function setLevels() {
    const main = shown().filter(({ plan }) => MAIN.includes(plan));
    for (const [axis, share] of [["steps", 0.6], ["gains", 0.9]]) {
      const input = byId(`${axis}-level`);
      const step = Number(input.step);
      const end = Math.floor(Math.min(...main.map((entry) => reach(entry, axis))) / step) * step;
      input.max = end;
      input.value = share * end;
    }
  }

  function show() {
    setLevels();
    showSource();
    for (const axis of Object.keys(AXES)) draw(axis);
  }

  function showSource() {
    const parts = shown().map(({ plan, rate, runs }) => `${PLANS[plan].words}: ${rate.toExponential()}, ${runs.length} seeds`);
    byId("source").textContent = `Recorded runs of the miniature; each line is the mean over seeds, as far as all of them ` +
      `go. Rates: ${parts.join("; ")}. A difference counts from ${smallest[state.text].toFixed(3)} on, fixed before the ` +
      "runs. The answer is a mean without an interval; the results' pages have those.";
  }

  choices(byId("texts"), TEXTS, (text) => {
    state.text = text;
    show();
  })(state.text);
  choices(byId("rates"), RATES, (choice) => {
    state.choice = choice;
    show();
  })(state.choice);
  /** A pointer that is pressed on a chart takes the dashed line along, as the slider below does. */
  function drag(axis, event) {
    if (event.buttons === 0) return;
    byId(`${axis}-level`).value = state.charts[axis].valueAt(event.clientX);
    draw(axis);
  }

  for (const axis of Object.keys(AXES)) {
    byId(`${axis}-level`).addEventListener("input", () => draw(axis));
    for (const kind of ["pointerdown", "pointermove"]) {
      byId(`${axis}-chart`).addEventListener(kind, (event) => drag(axis, event));
    }
  }
  show();
});
