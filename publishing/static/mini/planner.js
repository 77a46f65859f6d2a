// "Does it fit?": a step's memory by kind, card by card, and what would make it smaller.

import { advice, has, lengthsOf, peak, room, total, verdict } from "./budget.js";
import { byId, element, loadJson, start, whole } from "./page.js";
import { COURSE_PLANS, code } from "./plans.js";

const GIB = 2 ** 30;
const KINDS = {
  "weights and buffers": { of: ["parameters", "buffers"], colour: "var(--weights)" },
  "AdamW's moments": { of: ["optimizer"], colour: "var(--optimizer)" },
  gradients: { of: ["gradients"], colour: "var(--gradients)" },
  activations: { of: ["activations"], colour: "var(--activations)" },
  "logits and loss": { of: ["logits"], colour: "var(--logits)" },
};
const PLANS = [...COURSE_PLANS, { name: "lora", way: "only", selectors: ["lora"], title: "LoRA on attention" }];
const PARTS = [1, 2, 4, 8, 16, 32, 64];
const SIZES = { // of a model, as its number fields say them
  L: { words: "blocks", low: 4, high: 200 },
  g: { words: "heads", low: 1, high: 256 },
  q: { words: "queries a key", low: 1, high: 16 },
  e: { words: "numbers a head", low: 2, high: 256, step: 2 },
  f: { words: "inside the MLP", low: 1, high: 100_000 },
  V: { words: "words", low: 16, high: 1_000_000 },
};
const EDGE = 75; // per cent of a line, as in planner.css

const gib = (bytes) => (bytes / GIB).toFixed(bytes < 9.995 * GIB ? 2 : 1);
const sumOf = (bytes, kinds) => kinds.reduce((sum, kind) => sum + bytes[kind], 0);

await start(async () => {
  const table = await loadJson("budgets.json");
  const field = (name) => byId("controls").elements.namedItem(name); // a form has a length of its own
  const state = { model: "GPT-Neo 1.3B", shape: null, plan: "full", precision: "float32", checkpointing: false,
    batch: 4, length: 512, parts: 1, rank: 8 };

  function fill(name, options) {
    field(name).replaceChildren(...options.map(({ value, label }) => element("option", { value }, String(label ?? value))));
    field(name).value = state[name];
  }

  const numbers = (values) => values.map((value) => ({ value }));
  const ranks = () => table.ranks.filter((rank) => rank <= state.shape.g * state.shape.e); // the width of the keys
  const isPossible = ({ name }) =>
    has(table, state.shape, { ...state, plan: name }) && (name !== "lora" || ranks().length > 0);

  /** Offer what the model can have; what it cannot, gives way. */
  function offer() {
    const lengths = lengthsOf(table, state.shape);
    state.length = Math.max(lengths[0], Math.min(state.length, lengths.at(-1)));
    state.rank = Math.min(state.rank, ranks().at(-1) ?? state.rank);
    const plans = PLANS.filter(isPossible);
    if (!plans.some(({ name }) => name === state.plan)) state.plan = "full";
    fill("model", numbers(Object.keys(table.models)));
    fill("plan", plans.map(({ name, title }) => ({ value: name, label: title })));
    fill("rank", numbers(ranks()));
    fill("batch", numbers(table.batches));
    fill("length", numbers(lengths));
    fill("parts", numbers(PARTS));
    field("precision").value = state.precision;
    field("checkpointing").checked = state.checkpointing;
    document.querySelector(".rank").hidden = state.plan !== "lora";
  }

  /** Number fields for the model's sizes. Those that a family does not have are left out. */
  function offerSizes() {
    const own = Object.entries(SIZES).filter(([size]) => size !== "q" || state.shape.family === "llama");
    byId("sizes").replaceChildren(...own.map(([size, { words, low, high, step }]) => {
      const by = size === "L" ? (state.shape.family === "gpt_neo" ? 4 : 2) : (step ?? 1);
      const label = size === "g" && state.shape.family === "llama" ? "key-value heads" : words;
      const input = element("input", { type: "number", name: size, min: low, max: high, step: by, required: "",
        value: state.shape[size] });
      input.addEventListener("input", () => {
        if (!input.checkValidity()) return;
        state.shape = { ...state.shape, [size]: Number(input.value) };
        offer();
        show();
      });
      return element("label", {}, label, input);
    }));
  }

  function showKinds(bytes) {
    const rows = Object.entries(KINDS).map(([name, { of, colour }]) => [name, sumOf(bytes, of), colour]);
    const line = ([name, amount, colour]) => element("tr", {},
      element("th", { scope: "row" }, ...(colour ? [element("span", { class: "swatch", style: `--colour:${colour}` })] : []), name),
      element("td", {}, gib(amount)), element("td", {}, `${Math.round((100 * amount) / total(bytes))}%`));
    byId("kinds").replaceChildren(...[...rows, ["together", total(bytes)]].map(line));
  }

  function cardLine(card, bytes) {
    const said = verdict(table, card, state, bytes);
    const over = total(bytes) - room(table, card);
    const words = { fits: `fits: ${gib(-over)} GiB are left`, "does not fit": `does not fit: ${gib(over)} GiB too much` };
    const parts = Object.values(KINDS).map(({ of, colour }) => {
      const width = (EDGE * sumOf(bytes, of)) / room(table, card);
      return element("div", { class: "part", style: `--colour:${colour};width:${width.toFixed(3)}%` });
    });
    const isCut = (EDGE * total(bytes)) / room(table, card) > 100;
    const bar = element("div", { class: `card-bar${said in words ? "" : " unable"}`, "aria-hidden": "true" },
      ...parts, element("div", { class: "edge" }), ...(isCut ? [element("div", { class: "more" })] : []));
    return element("li", {}, element("div", { class: "card-line" },
      element("span", {}, element("b", {}, card), ` ${gib(room(table, card))} GiB of room`),
      element("b", { class: said === "fits" ? "fits" : "over" }, words[said] ?? said)), bar);
  }

  /** A change in words. */
  function named({ plan, precision, checkpointing, batch, parts, length }) {
    if (plan === "lora") return `Train LoRA of rank ${state.rank} alone`;
    if (plan) return `Plan: ${PLANS.find(({ name }) => name === plan).title}`;
    if (precision) return "bfloat16, frozen weights too";
    if (checkpointing) return "Compute blocks again in the backward pass";
    if (batch) return `${whole(batch)} ${batch === 1 ? "window" : "windows"} at a time, ${parts} batches added up: the same step`;
    return `Windows of ${length} tokens`;
  }

  function showAdvice(bytes) {
    const cards = Object.keys(table.cards);
    const buttons = advice(table, state.shape, state).map(({ change, saved }) => {
      const then = { ...state, ...change };
      const after = peak(table, state.shape, then);
      const won = cards.find((card) =>
        verdict(table, card, state, bytes) !== "fits" && verdict(table, card, then, after) === "fits");
      const button = element("button", { type: "button" }, element("span", {}, named(change)),
        element("span", { class: "saves" }, `saves ${gib(saved)} GiB`),
        ...(won ? [element("span", { class: "then" }, `Then it fits on: ${won}`)] : []));
      button.addEventListener("click", () => {
        Object.assign(state, change);
        byId("said").textContent = `Changed: ${named(change)}.`;
        offer();
        show();
        byId("advice-title").focus({ preventScroll: true }); // the button is gone
      });
      return button;
    });
    byId("advice").replaceChildren(...(buttons.length ? buttons : [element("p", {}, "No single change saves more than 1%.")]));
  }

  function showCode() {
    const { plan, rank, batch, length, parts, checkpointing, precision } = state;
    const options = [
      ...(plan === "lora" ? [`lora=LoraSize("attention", ${rank})`] : []),
      ...(precision === "half" ? ["dtype=torch.bfloat16", "frozen_dtype=torch.bfloat16"] : []),
      ...(checkpointing ? ["checkpointing=True"] : []),
      ...(parts > 1 ? [`n_parts=${parts}`] : []),
    ];
    const call = [`budget(config, ${code(PLANS.find(({ name }) => name === plan))}, ${batch}, ${length}`, ...options];
    byId("code").textContent = `${call.join(", ")}).peak_bytes`;
  }

  function show() {
    const bytes = peak(table, state.shape, state);
    byId("peak").textContent = `${gib(total(bytes))} GiB`;
    byId("peak").dataset.bytes = total(bytes);
    byId("width").textContent = `The width is heads times numbers a head: ${whole(state.shape.g * state.shape.q * state.shape.e)}.`;
    const fitting = Object.keys(table.cards).find((card) => verdict(table, card, state, bytes) === "fits");
    byId("glance").textContent = `${gib(total(bytes))} GiB: ${fitting ? `fits on ${fitting}` : "fits on none of the cards"}`;
    showKinds(bytes);
    byId("cards").replaceChildren(...Object.keys(table.cards).map((card) => cardLine(card, bytes)));
    showAdvice(bytes);
    showCode();
  }

  function choose(name) {
    state.model = name;
    state.shape = { ...table.models[name] };
    offerSizes();
  }

  for (const name of ["model", "plan", "rank", "batch", "length", "parts", "precision", "checkpointing"]) {
    field(name).addEventListener("change", () => {
      const { value, checked } = field(name);
      if (name === "model") choose(value);
      else state[name] = name === "checkpointing" ? checked : typeof state[name] === "number" ? Number(value) : value;
      offer();
      show();
    });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("edge").textContent = `The line in a bar is the card's edge: ${Math.round(100 * table.reserve)}% of its memory. ` +
    "The rest is for the driver and for gaps. Each bar has the scale of its card.";
  choose(state.model);
  offer();
  show();
});
