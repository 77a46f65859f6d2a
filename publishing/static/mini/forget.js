// "What does it forget?": the base, a tuned model, and one on the way between them write side by side.

import { Chart } from "./chart.js";
import { Ruler, isStale } from "./measure.js";
import { Model, softmax, write } from "./model.js";
import { byId, choices, element, loadBase, loadJson, loadTensors, start } from "./page.js";
import { readDelta, rewound } from "./plans.js";

const N_TOKENS = 40;
const DEEPEST = 3; // nats above the base's log-probability at which a token is fully orange
const TEXTS = [
  { value: "alice", label: "tuned on Alice's manner", prompt: "At the end of the garden there was" },
  { value: "edgar", label: "tuned on Edgar's manner", prompt: "I had not slept, and in the" },
];
const WRITERS = ["base", "rewound", "tuned"];

await start(async () => {
  const { weights, config, model: base, tokenizer } = await loadBase();
  const pages = await loadJson("texts.json");
  const judge = new Model(weights, config); // the base once more: it says what it thinks of each token
  const models = { base };
  const state = { text: "alice", alpha: Number(byId("alpha").value), seed: 0, writing: {}, measuring: 0 };

  // --- writing -------------------------------------------------------------------

  /** A model's continuation as [{token, own, base}], own and base being probabilities of the token. */
  async function continuation(model, prompt, isWanted) {
    judge.clear();
    let ofJudge;
    for (const id of prompt) ofJudge = judge.read(id);
    const tokens = [];
    for (const { token, logits } of write(model, prompt, { count: N_TOKENS, seed: state.seed })) {
      tokens.push({ token, own: softmax(logits)[token], base: softmax(ofJudge)[token] });
      if (judge.time < judge.positions) ofJudge = judge.read(token);
    }
    return (await isStale(isWanted)) ? null : tokens;
  }

  async function writeAs(writer) {
    const turn = (state.writing[writer] = (state.writing[writer] ?? 0) + 1);
    const isWanted = () => state.writing[writer] === turn;
    if (await isStale(isWanted)) return;
    const prompt = tokenizer.encode(byId("prompt").value.trim() || "The").slice(0, 100);
    const tokens = await continuation(models[writer], prompt, isWanted);
    if (tokens) show(writer, prompt, tokens);
  }

  function show(writer, prompt, tokens) {
    if (writer === "base") state.ofBase = tokens.map(({ token }) => token);
    const parting = tokens.findIndex(({ token }, i) => token !== state.ofBase[i]);
    const box = byId(writer);
    box.replaceChildren(element("span", { class: "asked" }, tokenizer.decode(prompt)));
    tokens.forEach((found, i) => {
      const depth = Math.min(1, Math.max(0, Math.log(found.own / found.base) / DEEPEST));
      const words = tokenizer.decode([found.token]);
      const part = element("span", { class: "token", style: `--depth: ${Math.round(100 * depth)}%` }, words);
      part.classList.toggle("parts", i === parting);
      part.said = `${writer}, token ${i + 1}, “${words.replaceAll("\n", "⏎")}”: the base gives it ` +
        `${percent(found.base)}, this model ${percent(found.own)}.`;
      box.append(part);
    });
    byId(`${writer}-said`).textContent = writer === "base" ? "The untouched model." : saidOfParting(parting, tokens);
  }

  function saidOfParting(parting, tokens) {
    if (parting < 0) return `The same ${tokens.length} tokens as the base.`;
    return `Parts from the base at token ${parting + 1} of ${tokens.length}.`;
  }

  const percent = (share) => `${(100 * share).toFixed(share < 0.01 ? 2 : 0)}%`;

  /** One stop of the Tab key for each text; the arrow keys go from token to token. */
  function makeReadable(box, name) {
    for (const [key, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": `Text of the ${name} model` })) {
      box.setAttribute(key, value);
    }
    const choose = (part) => {
      document.querySelector(".token.chosen")?.classList.remove("chosen");
      part.classList.add("chosen");
      byId("token").textContent = part.said;
    };
    box.addEventListener("pointerover", (event) => event.target.said && choose(event.target));
    box.addEventListener("click", (event) => event.target.said && choose(event.target));
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const tokens = [...box.querySelectorAll(".token")];
      if (!step || !tokens.length) return;
      event.preventDefault();
      const at = tokens.findIndex((part) => part.classList.contains("chosen"));
      choose(tokens[Math.min(tokens.length - 1, Math.max(0, at + step))]);
    });
  }

  // --- measuring -----------------------------------------------------------------

  /** Measure what is shown and not yet known: the base, the tuned model, and the one at alpha. */
  async function measureShown() {
    await measure([0, 1, state.alpha]);
  }

  async function measure(alphas) {
    const turn = ++state.measuring;
    const isWanted = () => state.measuring === turn;
    for (const alpha of alphas) {
      if (state.measured.has(alpha)) continue;
      showMeasured();
      const model = new Model(rewound(weights, state.changes, alpha), config);
      const found = await state.ruler.measure(model, isWanted);
      if (!found) return;
      state.measured.set(alpha, found);
    }
    if (isWanted()) showMeasured();
  }

  function showMeasured() {
    const ofBase = state.measured.get(0);
    for (const [writer, alpha] of [["base", 0], ["rewound", state.alpha], ["tuned", 1]]) {
      const found = ofBase && state.measured.get(alpha);
      byId(`loss-${writer}`).textContent = found ? found.loss.toFixed(3) : "…";
      byId(`gain-${writer}`).textContent = found ? signed(ofBase.loss - found.loss) : "…";
      byId(`kl-${writer}`).textContent = found ? unsigned(found.forgetting) : "…";
    }
    if (ofBase && state.measured.has(1)) drawPath(ofBase.loss);
  }

  const unsigned = (value) => (Math.round(1000 * value) / 1000 || 0).toFixed(3); // "0.000" and never "-0.000"

  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);

  function drawPath(lossOfBase) {
    const points = [...state.measured].sort(([a], [b]) => a - b)
      .map(([alpha, { loss, forgetting }]) => ({ alpha, at: [lossOfBase - loss, forgetting] }));
    const gains = points.map(({ at }) => at[0]);
    const largest = Math.max(...points.map(({ at }) => at[1]));
    const chart = new Chart(byId("path"),
      { label: "gain on unseen pages", low: Math.min(0, ...gains), high: 1.15 * Math.max(0.01, ...gains) },
      { label: "forgetting", low: 0, high: 1.15 * largest });
    chart.line(points.map(({ at }) => at), "var(--soft)");
    for (const { at } of points) chart.dot(at, "var(--soft)", 4);
    const here = points.find(({ alpha }) => alpha === state.alpha);
    const ends = [{ ...points[0], words: "base", colour: "var(--ice)" },
      { ...points.at(-1), words: "tuned", colour: "var(--orange)" }];
    const named = [...ends, ...(here && here.alpha > 0 && here.alpha < 1 ?
      [{ ...here, words: `α = ${here.alpha.toFixed(2)}`, colour: "var(--ink)" }] : [])];
    for (const { at, colour } of named) chart.dot(at, colour, 7);
    chart.names(named.map(({ at, words, colour }) => ({ points: [at], words, colour })));
    const best = points.reduce((a, b) => (b.at[0] > a.at[0] ? b : a));
    byId("path-said").textContent = `Each dot was measured in this page: ${points.length} so far. Of these, ` +
      `α = ${best.alpha.toFixed(2)} has the largest gain, ${signed(best.at[0])}, and forgets ${best.at[1].toFixed(3)}.`;
  }

  // --- what the reader does ------------------------------------------------------

  function setAlpha(alpha) {
    state.alpha = alpha;
    byId("alpha-shown").textContent = alpha.toFixed(2);
    document.querySelector(".writer.rewound").style.setProperty("--share", `${100 * alpha}%`);
    byId("rewound-title").textContent = `Rewound to α = ${alpha.toFixed(2)}`;
    models.rewound = new Model(rewound(weights, state.changes, alpha), config);
  }

  async function writeAll() {
    for (const writer of WRITERS) await writeAs(writer);
  }

  async function setText(name) {
    const text = TEXTS.find(({ value }) => value === name);
    state.changes = readDelta(await loadTensors(`${name}.safetensors`));
    state.measured = new Map(); // alpha to {loss, forgetting}
    state.ruler = new Ruler(new Model(weights, config), pages[name].map((page) => tokenizer.encode(page)),
      pages.base.map((page) => tokenizer.encode(page)));
    models.tuned = new Model(rewound(weights, state.changes, 1), config);
    byId("prompt").value = text.prompt;
    setAlpha(state.alpha);
    const { unseen, written } = state.ruler.sizes();
    byId("measured-on").textContent = `On ${unseen} tokens of the text's unseen pages and on ${written} that the base ` +
      "wrote. So few tokens measure roughly; the lessons use many more.";
    byId("pages").replaceChildren(...[...pages[name], ...pages.base].map((page) => element("p", {}, page)));
    showMeasured();
  }

  async function refresh() {
    await writeAll();
    await measureShown();
  }

  for (const writer of WRITERS) makeReadable(byId(writer), writer);
  byId("alpha").addEventListener("input", async (event) => {
    setAlpha(Number(event.target.value));
    showMeasured();
    await writeAs("rewound");
    await measureShown();
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    writeAll();
  });
  byId("another").addEventListener("click", () => {
    state.seed += 1;
    writeAll();
  });
  byId("whole").addEventListener("click", () => measure(Array.from({ length: 11 }, (_, i) => i / 10)));
  const press = choices(byId("texts"), TEXTS, async (name) => {
    await setText(name);
    await refresh();
  });
  await setText(state.text);
  press(state.text);
  refresh();
});
