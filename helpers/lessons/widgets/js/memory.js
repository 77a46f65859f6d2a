// The memory planner: one stacked bar a card, against the card's edge. What would help are buttons.

import { ask, element, ground, group, list } from "./draw.js";

const EDGE = 72; // where a card's room ends, in % of its bar: what sticks out can be seen
const COLOURS = ["weights", "optimizer", "gradients", "activations", "logits"].map((kind) => `var(--${kind})`);

const gib = (n) => `${(n / 2 ** 30).toFixed(2)} GiB`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** The name under which the kernel answers one setting. */
const keyOf = ({ model, plan, batch, length, precision }) => [model, plan, batch, length, precision].join("|");

/** What the kernel has said so far, and what follows from it: whether a step fits, and what to change. */
class Planner {
  constructor({ models, cards, half }) {
    Object.assign(this, { models, cards, half });
    this.costs = new Map();
  }

  learn({ costs = {} }) {
    for (const [key, kinds] of Object.entries(costs)) this.costs.set(key, kinds);
  }

  /** Bytes at the fullest moment by kind; undefined where the kernel has not answered yet. */
  kinds(setting) {
    return this.costs.get(keyOf(setting));
  }

  fits(setting, card) {
    const kinds = this.kinds(setting);
    return kinds !== undefined && this.isAble(setting, card) && sum(kinds) <= card.room;
  }

  isAble(setting, card) {
    return setting.precision !== this.half || card.hasHalf;
  }

  /** Single changes with which a step would fit, the one that costs least first: [{words, change}]. */
  advice(setting, card) {
    const { batches, lengths, plans } = this.models[setting.model];
    if (!this.isAble(setting, card)) return [{ words: "float32", change: { precision: "float32" } }];
    const fitting = (name, values) => values.filter((value) => this.fits({ ...setting, [name]: value }, card));
    if (this.fits(setting, card)) {
      const most = Math.max(...fitting("batch", batches));
      return most > setting.batch ? [{ words: `a batch of ${most} fits too`, change: { batch: most } }] : [];
    }
    const found = [];
    const batch = Math.max(0, ...fitting("batch", batches.filter((n) => n < setting.batch)));
    if (batch) found.push({ words: `micro-batches of ${batch}`, change: { batch } });
    const length = Math.max(0, ...fitting("length", lengths.filter((n) => n < setting.length)));
    if (length) found.push({ words: `windows of ${length} tokens`, change: { length } });
    if (this.fits({ ...setting, precision: this.half }, card)) found.push({ words: "bfloat16", change: { precision: this.half } });
    const names = fitting("plan", plans.map(({ key }) => key));
    const largest = plans.filter(({ key }) => names.includes(key)).sort((a, b) => b.R - a.R)[0];
    if (largest) found.push({ words: `the plan ${largest.key}`, change: { plan: largest.key } });
    return found;
  }

  /** A setting with what its model has: a plan or a length that is not there becomes the last one. */
  possible(setting) {
    const { lengths, plans } = this.models[setting.model];
    const keys = plans.map(({ key }) => key);
    return { ...setting, plan: keys.includes(setting.plan) ? setting.plan : keys.at(-1),
      length: lengths.includes(setting.length) ? setting.length : lengths.at(-1) };
  }
}

function render({ model, el }) {
  const data = model.get("data");
  const planner = new Planner(data);
  const { root, leave } = ground(model, el, "memory", "Memory planner");
  let setting = model.get("choice");

  const controls = element("div", { class: "controls" });
  const headline = element("p", { class: "headline", "aria-live": "polite" });
  const kinds = element("p", { class: "kinds" });
  const cards = element("div", {});
  root.append(controls, headline, kinds, cards,
    element("p", { class: "soft" }, `The line is a card's room: ${data.reserve} of what it gives a program. `
      + "A card has a bar of its own scale. All is predicted."));

  function change(changes) {
    setting = planner.possible({ ...setting, ...changes });
    ask(model, setting);
    show();
  }

  function showControls() {
    const own = planner.models[setting.model];
    const numbers = (values) => values.map((n) => ({ value: n, label: `${n}` }));
    const names = Object.keys(planner.models).map((name) => ({ value: name, label: name }));
    const focus = document.activeElement?.closest?.(".memory .field")?.dataset.name;
    const at = document.activeElement?.value;
    const fields = {
      model: list("Model", names, setting.model, (value) => change({ model: value })),
      plan: list("Plan", own.plans.map(({ key }) => ({ value: key, label: key })), setting.plan, (plan) => change({ plan })),
      precision: list("Precision", data.precisions.map((name) => ({ value: name, label: name })), setting.precision,
        (precision) => change({ precision })),
      batch: group("Batch (windows)", numbers(own.batches), setting.batch, (n) => change({ batch: Number(n) })),
      length: group("Length (tokens)", numbers(own.lengths), setting.length, (n) => change({ length: Number(n) })),
    };
    for (const [name, field] of Object.entries(fields)) field.dataset.name = name;
    controls.replaceChildren(...Object.values(fields));
    // the reader who came with the keyboard stays where she was
    if (focus) [...fields[focus].querySelectorAll("select, button")].find((one) => one.matches("select") || one.value === at)?.focus();
  }

  function showCard(card, own) {
    const total = sum(own);
    const fits = planner.fits(setting, card);
    const width = (n) => `${(EDGE * n) / card.room}%`;
    const parts = own.map((n, i) => element("i", { style: `width: ${width(n)}; flex: none; --kind: ${COLOURS[i]}` }));
    const verdict = !planner.isAble(setting, card) ? "no bfloat16" : fits ? "fits" : "does not fit";
    const buttons = planner.advice(setting, card).map(({ words, change: own }) => {
      const button = element("button", { type: "button" }, words);
      button.addEventListener("click", () => change(own));
      return button;
    });
    const words = buttons.length ? "What would help:" : planner.models[setting.model].isQuick
      ? "No single change helps: take a smaller model." : "Try other values: for this family a prediction takes seconds.";
    const help = fits ? [] : [element("span", {}, words)];
    return element("div", { class: "card" }, element("b", {}, card.name),
      element("span", { class: fits ? "fits" : "misses" }, element("b", {}, verdict),
        `: ${Math.round((100 * total) / card.room)}% of ${gib(card.room)}`),
      element("div", { class: "stack", "aria-hidden": "true" }, element("div", { class: "room", style: `width: ${EDGE}%` }), ...parts,
        element("div", { class: "room edge", style: `width: ${EDGE}%; background: none` })),
      element("div", { class: "advice" }, ...help, ...buttons));
  }

  function show() {
    showControls();
    const own = planner.kinds(setting);
    root.classList.toggle("waits", own === undefined);
    if (own === undefined) { // what stands there belongs to another setting
      headline.textContent = "Predicting this step…";
      return;
    }
    headline.replaceChildren(element("b", {}, gib(sum(own))),
      ` at the fullest moment of a step of ${setting.batch} x ${setting.length} tokens`);
    kinds.replaceChildren(...data.kinds.map((name, i) => element("span", { style: `--kind: ${COLOURS[i]}` }, `${name} ${gib(own[i])}`)));
    cards.replaceChildren(...planner.cards.map((card) => showCard(card, own)));
  }

  model.on("change:answer", () => {
    planner.learn(model.get("answer"));
    show();
  });
  planner.learn(model.get("answer"));
  show();
  return leave;
}

export default { render };
