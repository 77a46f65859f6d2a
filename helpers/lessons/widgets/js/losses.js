// The loss explorer: the mean of a plan's runs and a band from its lowest to its highest seed; smoothed openly.

import { ask, element, ground, list, shape } from "./draw.js";
import { Chart } from "./chart.js";

const ALL = "all";

/** The mean of each value and its neighbours, `width` in all, fewer at the ends. What is no number is left out. */
export function smoothed(values, width) {
  const half = Math.floor(width / 2);
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((value) => value !== null);
    return near.length ? mean(near) : null;
  });
}

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
const capital = (words) => words[0].toUpperCase() + words.slice(1);

/** For runs of one label: [{step, mean, low, high}], as far as all of them go. */
export function band(series) {
  const byStep = series.map(({ steps, values }) => new Map(steps.map((step, i) => [step, values[i]])));
  const end = Math.min(...series.map(({ steps }) => steps.at(-1) ?? -1));
  const found = [];
  for (const step of series[0].steps.filter((step) => step <= end)) {
    const values = byStep.map((run) => run.get(step)).filter((value) => value !== undefined && value !== null);
    if (values.length === series.length) found.push({ step, mean: mean(values), low: Math.min(...values), high: Math.max(...values) });
  }
  return found;
}

/** Points of a run without gaps: where a value is no number, a new piece begins. */
function pieces({ steps, values }) {
  const found = [[]];
  values.forEach((value, i) => (value === null ? found.push([]) : found.at(-1).push([steps[i], value])));
  return found.filter((piece) => piece.length > 0);
}

function render({ model, el }) {
  const { runs, labels, measures, windows, texts, seeds } = model.get("data");
  const { root, leave } = ground(model, el, "losses", "Loss explorer", () => show());
  let choice = model.get("choice");

  const title = element("p", { class: "title", "aria-live": "polite" });
  const svg = shape("svg", { class: "chart", role: "img" });
  const ends = element("div", { class: "ends" });
  const same = (names) => names.map((name) => ({ value: name, label: `${name}` }));
  const controls = element("div", { class: "controls" },
    list("Text", same(texts), choice.text, (text) => change({ text })),
    list("Measure", same(measures.map(({ name }) => name)), choice.measure, (measure) => change({ measure })),
    list("Seed", same([ALL, ...seeds]), choice.seed, (seed) => change({ seed })),
    list("Points averaged", same(windows), choice.window, (n) => change({ window: Number(n) })));
  const every = element("button", { type: "button" }, "every run");
  every.addEventListener("click", () => change({ every: !choice.every }));
  controls.append(every);
  const chips = element("div", { class: "choices", role: "group", "aria-label": "Plans and rates" });
  const buttons = labels.map(({ label, words, colour, dash }) => {
    const button = element("button", { type: "button" }, shape("svg", { width: 26, height: 10, "aria-hidden": "true" },
      shape("path", { d: "M0 5H26", style: `stroke: ${ink(colour)}; stroke-width: 4; stroke-dasharray: ${dash || "none"}` })), words);
    button.addEventListener("click", () => {
      const on = choice.on.includes(label) ? choice.on.filter((other) => other !== label) : [...choice.on, label];
      change({ on });
    });
    chips.append(button);
    return button;
  });
  root.append(title, svg, ends, controls, chips);

  function change(changes) {
    choice = { ...choice, ...changes };
    ask(model, choice);
    show();
  }

  /** The lines that are shown: a label, its runs' points as measured, and the same averaged. */
  function shown() {
    return labels.filter(({ label }) => choice.on.includes(label)).map((look) => {
      const own = runs.filter((run) => run.label === look.label && run.text === choice.text
        && (choice.seed === ALL || `${run.seed}` === `${choice.seed}`));
      const raw = own.map((run) => run.series[choice.measure]).filter((points) => points.values.length)
        .map(({ steps, values }) => ({ steps: steps ?? values.map((_, i) => i + 1), values })); // one value a step
      const calm = raw.map(({ steps, values }) => ({ steps, values: smoothed(values, choice.window) }));
      return { ...look, colour: ink(look.colour), raw, points: raw.length ? band(calm) : [] };
    }).filter(({ raw }) => raw.length > 0);
  }

  function draw(lines, unit) {
    const isSingle = choice.seed !== ALL;
    const drawn = lines.flatMap(({ raw, points }) => [...points.flatMap(({ step, low, high }) => [[step, low], [step, high]]),
      ...(isSingle || choice.every ? raw.flatMap((run) => pieces(run).flat()) : [])]);
    const [xs, ys] = [0, 1].map((axis) => (drawn.length ? drawn.map((point) => point[axis]) : [0, 1]));
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const margin = 0.06 * (high - low || 1);
    const chart = new Chart(svg, { label: "optimizer step", low: 0, high: 1.02 * Math.max(...xs) },
      { label: unit, low: low - margin, high: high + margin }, root.clientWidth - 30);
    for (const { raw, points, colour, dash } of lines) {
      if (isSingle || choice.every) {
        for (const piece of raw.flatMap(pieces)) chart.line(piece, colour, { width: 1, opacity: 0.5 });
      }
      const at = (key) => points.map((point) => [point.step, point[key]]);
      if (raw.length > 1) chart.band(at("low"), at("high"), colour);
      if (points.length) chart.line(at("mean"), colour, { width: 2.5, dash });
    }
    chart.names(lines.filter(({ points }) => points.length).map(({ points, words, colour }) => (
      { points: points.map((point) => [point.step, point.mean]), words, colour })));
  }

  /** The last point of each run, never averaged over steps: a dot at the mean, a line over the seeds. */
  function showEnds(lines) {
    const rows = lines.map((line) => ({ ...line, last: line.raw.map(({ values }) => values.at(-1)).filter((value) => value !== null) }))
      .filter(({ last }) => last.length);
    const all = rows.flatMap(({ last }) => last);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const x = (value) => 8 + (184 * (value - low)) / (high - low || 1);
    ends.replaceChildren(element("p", { class: "soft" }, rows.length
      ? "The last point of each run, not averaged: the mean, and the line from the lowest to the highest seed."
      : "No run is chosen on this text: press a plan below."),
    ...rows.map(({ words, colour, last }) => element("div", { class: "end" }, element("span", {}, words),
      shape("svg", { viewBox: "0 0 200 16", "aria-hidden": "true" },
        shape("path", { d: `M${x(Math.min(...last))} 8H${x(Math.max(...last))}`, style: `stroke: ${colour}; stroke-width: 3` }),
        shape("circle", { cx: x(mean(last)), cy: 8, r: 6, style: `fill: ${colour}` })),
      element("span", {}, element("b", {}, mean(last).toFixed(3)),
        last.length > 1 ? ` (${Math.min(...last).toFixed(3)} to ${Math.max(...last).toFixed(3)}, ${last.length} seeds)` : ""))));
  }

  function show() {
    const lines = shown();
    const { unit } = measures.find(({ name }) => name === choice.measure);
    const how = [choice.window === 1 ? "no points averaged" : `each point the mean of ${choice.window} neighbours`,
      choice.seed === ALL ? "line: mean over seeds; band: lowest to highest" : `thin: every point of seed ${choice.seed}`];
    title.replaceChildren(element("b", {}, `${capital(choice.measure)}, ${choice.text}`), ` (${how.join("; ")})`);
    svg.setAttribute("aria-label", `${title.textContent}: ${lines.map(({ words }) => words).join(", ") || "nothing chosen"}`);
    every.setAttribute("aria-pressed", choice.every);
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", choice.on.includes(labels[i].label));
      button.disabled = !runs.some(({ label, text }) => label === labels[i].label && text === choice.text);
    });
    draw(lines, unit);
    showEnds(lines);
  }

  show();
  return leave;
}

/** A plan's colour, lighter on a dark ground. */
function ink(colour) {
  return `light-dark(${colour}, color-mix(in oklab, ${colour} 45%, white))`;
}

export default { render };
