// The freeze designer: the drawing of the model is the control. A part that is clicked freezes, or thaws.

import { ask, element, ground, list, onPress, shape, whole } from "./draw.js";

const ROW = 46;
const BOX = 34; // its height
const COLUMNS = { norm: [46, 76], attention: [130, 124], mlp: [262, 124] }; // left edge and width
const WORDS = { norm: "norms", attention: "attention", mlp: "MLP", token_embedding: "token table",
  position_embedding: "positions", head: "head" };

/** 147840 as "148 k": how large a part is, at a glance. */
const short = (n) => (n < 1e4 ? whole(n) : n < 1e6 ? `${Math.round(n / 1e3)} k` : `${(n / 1e6).toFixed(1)} M`);
const mebibytes = (n) => `${(n / 2 ** 20).toFixed(n < 2 ** 30 ? 1 : 0)} MiB`;

/** Neighbouring numbers joined: [0, 1, 2, 5] becomes ["0-2", "5"]. */
export function runs(numbers) {
  const found = [];
  for (const n of numbers) {
    if (found.length && n === found.at(-1)[1] + 1) found.at(-1)[1] = n;
    else found.push([n, n]);
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`));
}

/** Selectors of frozen parts, as short as may be: a role that is frozen everywhere is one word. */
export function selectors(parts, frozen) {
  const found = [];
  for (const role of ["attention", "mlp", "norm", "token_embedding", "position_embedding", "head"]) {
    const own = parts.filter((part) => part.role === role);
    const cold = own.filter((part) => frozen.has(part.id));
    const word = role === "norm" ? "norms" : role;
    if (cold.length && cold.length === own.length) found.push(word);
    else {
      const blocks = cold.filter((part) => part.block !== null).map((part) => part.block);
      found.push(...runs(blocks).map((run) => `${word}@${run}`));
      found.push(...cold.filter((part) => part.block === null).flatMap((part) => part.selectors));
    }
  }
  const both = ["token_embedding", "position_embedding"];
  if (!both.every((word) => found.includes(word))) return found;
  return [...found.filter((word) => !both.includes(word)), "embeddings"];
}

/** The Python that makes the plan. */
export function code(parts, frozen) {
  const words = selectors(parts, frozen).map((word) => `"${word}"`);
  return words.length ? `FreezePlan.freeze(${words.join(", ")})` : "FreezePlan.full()";
}

/** One box of the drawing. */
function drawBox(svg, part, x, y, width) {
  const box = shape("g", { class: "part", role: "checkbox", tabindex: 0, "data-part": part.id,
    "aria-label": `Train ${part.label}: ${whole(part.n)} weights` },
  shape("rect", { x, y, width, height: BOX, rx: 7 }),
  shape("text", { x: x + width / 2, y: y + 15, "text-anchor": "middle" }, WORDS[part.role]),
  shape("text", { x: x + width / 2, y: y + 28, "text-anchor": "middle", class: "size" }, short(part.n)));
  svg.append(box);
  return box;
}

/** The model from its embeddings, above, to its head: a map of part to box, and the buttons for many parts at once. */
function drawModel(svg, parts) {
  const nBlocks = Math.max(-1, ...parts.map((part) => part.block ?? -1)) + 1;
  const own = (role, block = null) => parts.find((part) => part.role === role && part.block === block);
  const boxes = new Map();
  const many = [];
  const draw = (part, x, y, width) => part && boxes.set(part.id, drawBox(svg, part, x, y, width));
  const blocksTop = 4 + 2 * ROW;
  const bottom = blocksTop + nBlocks * ROW;
  const height = bottom + 2 * ROW + 12;
  svg.setAttribute("viewBox", `0 0 400 ${height}`);
  svg.append(shape("path", { class: "stream", d: `M24 ${4 + BOX}V${height - 2 * BOX + 8}` }),
    shape("path", { class: "way" }));
  const press = (label, words, x, y, width, chosen) => {
    const button = shape("g", { class: "many", role: "button", tabindex: 0, "aria-label": label },
      shape("rect", { x, y, width, height: 30, rx: 7 }),
      shape("text", { x: x + width / 2, y: y + 20, "text-anchor": "middle" }, words));
    svg.append(button);
    many.push([button, parts.filter(chosen).map((part) => part.id)]);
  };
  draw(own("token_embedding"), 4, 4, own("position_embedding") ? 250 : 382);
  draw(own("position_embedding"), 262, 4, 124);
  for (const [role, [x, width]] of Object.entries(COLUMNS)) {
    const inBlocks = (part) => part.role === role && part.block !== null;
    if (parts.some(inBlocks)) press(`Switch ${WORDS[role]} in all blocks`, `all ${WORDS[role]}`, x, ROW + 12, width, inBlocks);
  }
  svg.append(shape("text", { x: 4, y: ROW + 32, class: "note" }, "block"));
  for (let block = 0; block < nBlocks; block++) {
    const y = blocksTop + block * ROW + 6;
    press(`Switch block ${block}`, `${block}`, 4, y + 2, 34, (part) => part.block === block);
    for (const [role, [x, width]] of Object.entries(COLUMNS)) draw(own(role, block), x, y, width);
  }
  draw(own("norm"), 4, bottom + 10, 118);
  if (own("head")) draw(own("head"), 4, bottom + 10 + ROW, 250);
  else svg.append(shape("g", { class: "part tied", "data-tied": "" },
    shape("rect", { x: 4, y: bottom + 10 + ROW, width: 250, height: BOX, rx: 7 }),
    shape("text", { x: 129, y: bottom + 32 + ROW, "text-anchor": "middle" }, "head: the token table again")));
  svg.append(shape("text", { x: 134, y: bottom + 31, class: "note" }, "the stream runs past every part"));
  return { boxes, many };
}

/** A bar beside what it is without freezing; its parts stand for themselves, each with an opacity of its own. */
function meter(words, sizes, full, said) {
  return element("div", { class: "meter" }, element("span", {}, words), element("b", {}, said),
    element("div", { class: "track", "aria-hidden": "true" }, ...sizes.map((n, i) =>
      element("div", { style: `width: ${(100 * n) / full}%; opacity: ${1 - 0.25 * i}` }))));
}

function render({ model, el }) {
  const { parts, plans, step } = model.get("data");
  const { root, leave } = ground(model, el, "freezing", "Freeze designer");
  const sum = (chosen) => chosen.reduce((n, part) => n + part.n, 0);
  const total = sum(parts);
  let frozen = new Set(model.get("choice").frozen);

  const svg = shape("svg", { class: "model", role: "group", "aria-label": "The model: click a part to freeze or thaw it" });
  const { boxes, many } = drawModel(svg, parts);
  const bar = element("div", { class: "strip", "aria-hidden": "true" });
  const headline = element("p", { class: "headline", "aria-live": "polite" });
  const meters = element("div", {});
  const reach = element("p", {});
  const line = element("code", {});
  const options = [{ value: "", label: "your own" }, ...plans.map(({ key, label }) => ({ value: key, label }))];
  const named = list("A plan to begin with", options, "", (key) => {
    if (key) change(new Set(plans.find((plan) => plan.key === key).frozen));
  });
  root.append(element("div", { class: "controls" }, named, element("p", {}, "Or click a part: ",
    element("b", { class: "ice" }, "ice is frozen"), ", ", element("b", { class: "orange" }, "orange trains"), ".")),
  headline, bar, element("div", { class: "two" }, svg, element("div", {}, meters, reach, line)));

  function change(next) {
    frozen = next;
    show();
    if (frozen.size < parts.length) ask(model, { frozen: [...frozen] });
  }

  /** Freeze what trains among these; where nothing of them does, thaw them all. */
  function toggle(ids) {
    const next = new Set(frozen);
    const isCold = ids.every((id) => next.has(id));
    for (const id of ids) isCold ? next.delete(id) : next.add(id);
    change(next);
  }

  function show() {
    const training = parts.filter((part) => !frozen.has(part.id));
    const n = sum(training);
    for (const [id, box] of boxes) {
      box.classList.toggle("frozen", frozen.has(id));
      box.setAttribute("aria-checked", String(!frozen.has(id)));
    }
    const table = parts.find((part) => part.role === "token_embedding");
    svg.querySelector("[data-tied]")?.classList.toggle("frozen", frozen.has(table?.id));
    headline.replaceChildren(element("b", { class: "share" }, `${((100 * n) / total).toFixed(1)}%`),
      ` of the weights train: ${whole(n)} of ${whole(total)}`);
    bar.replaceChildren(...parts.map((part) => element("span", {
      class: frozen.has(part.id) ? "frozen" : "", style: `flex-grow: ${part.n}` })));
    line.textContent = training.length ? code(parts, frozen) : "FreezePlan refuses: this plan trains nothing.";
    const plan = plans.find((plan) => plan.frozen.length === frozen.size && plan.frozen.every((id) => frozen.has(id)));
    named.querySelector("select").value = plan?.key ?? "";
    showReach(training);
    showMeters(n);
  }

  /** The way that the gradient goes back from the loss, as far as the first part that trains. */
  function showReach(training) {
    const first = training.at(0); // parts come in the order in which the stream passes them
    const bottom = svg.viewBox.baseVal.height - 8;
    const y = first && boxes.get(first.id).querySelector("rect").y.baseVal.value + BOX / 2;
    svg.querySelector(".way").setAttribute("d", first ? `M24 ${bottom}H394V${y}m-4 7l4 -8l4 8` : "");
    reach.textContent = first ? `The gradient goes back from the loss as far as: ${first.label}.`
      : "Nothing trains. Thaw at least one part.";
  }

  /** Bytes are counted here; what the kernel predicts for the same choice comes with its answer. */
  function showMeters(n) {
    const bytes = (k) => 4 * total + 12 * k; // float32 weights; a gradient and AdamW's two moments where they train
    const rows = [meter("weights, gradients, optimizer", [bytes(n)], bytes(total),
      `${mebibytes(bytes(n))} of ${mebibytes(bytes(total))}`)];
    const { frozen: asked, peak, flops, full } = model.get("answer");
    if (asked && asked.length === frozen.size && asked.every((id) => frozen.has(id))) {
      const work = full.flops.reduce((a, b) => a + b);
      const [forward, input, weight, all] = [...flops, flops.reduce((a, b) => a + b)].map((n) => (n / 1e9).toFixed(1));
      rows.push(meter("memory at the fullest moment", [peak], full.peak, `${mebibytes(peak)} of ${mebibytes(full.peak)}`),
        meter("work", flops, work, `${all} of ${(work / 1e9).toFixed(1)} GFLOP`),
        element("p", { class: "soft" }, `Work: forward ${forward}, backward to the input ${input}, backward to the weight `
          + `${weight}. All is predicted, for ${step}, beside nothing frozen.`));
    }
    meters.replaceChildren(...rows);
  }

  for (const [id, box] of boxes) onPress(box, () => toggle([id]));
  for (const [button, ids] of many) onPress(button, () => toggle(ids));
  model.on("change:answer", show);
  show();
  return leave;
}

export default { render };
