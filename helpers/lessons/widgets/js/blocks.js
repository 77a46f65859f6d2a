// The block explorer: click a word, and see where each head looks from there. A click on a head shows its whole map.

import { ask, element, ground, shape } from "./draw.js";

const STRIP = 20; // height of a head's strip
const STEPS = 65535; // what a weight of 1 is stored as, after its square root

/** Numbers that came as text: little-endian, two bytes each. */
export function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

/** Attention weights, as far as they are here: of all heads and queries, or of those that the kernel was asked for. */
export class Weights {
  constructor({ nHeads, tokens, weights }) {
    this.nHeads = nHeads;
    this.n = tokens.length;
    this.size = (this.n * (this.n + 1)) / 2; // of one head: a query looks at itself and what came before
    this.all = weights && numbers(weights);
    this.rows = new Map(); // query: all heads' rows, one after the other
    this.maps = new Map(); // "block,head": its rows, one after the other
  }

  learn({ rows, maps }) {
    if (rows) this.rows.set(rows.query, numbers(rows.data));
    if (maps) this.maps.set(`${maps.block},${maps.head}`, numbers(maps.data));
  }

  /** The square roots of a head's weights from a query: (query + 1) numbers from 0 to 1; null: not here yet. */
  row(block, head, query) {
    const start = (query * (query + 1)) / 2;
    const place = block * this.nHeads + head;
    const take = (from, begin) => from && Float32Array.from(from.subarray(begin, begin + query + 1), (u) => u / STEPS);
    return take(this.all, place * this.size + start) ?? take(this.maps.get(`${block},${head}`), start)
      ?? take(this.rows.get(query), place * (query + 1)) ?? null;
  }
}

/** The first key that a query may see: in a local block, the nearest ones. */
const firstSeen = (kind, window, query) => (kind === "local" ? Math.max(0, query - window + 1) : 0);

/** A weight's square root as the strength of ice blue, in light and in dark. */
const tint = (root) => `color-mix(in oklab, var(--ice) ${Math.round(85 * root)}%, transparent)`;

function render({ model, el }) {
  const { root, leave } = ground(model, el, "blocks", "Block explorer", () => show());
  let { block, head, query } = model.get("choice");
  let passage, weights;

  const words = element("p", { class: "words", role: "group", "aria-label": "The passage: choose the word that looks" });
  const said = element("p", { class: "said", "aria-live": "polite" });
  const heads = element("div", { class: "heads", role: "group", "aria-label": "All heads: choose one" });
  const map = element("canvas", { role: "img" });
  const caption = element("p", { class: "soft" });
  const own = element("textarea", { rows: 2, "aria-label": "Your own passage" });
  const read = element("button", { type: "button" }, "Read it");
  const mine = element("div", { class: "own" }, own, read);
  mine.hidden = !model.get("alive"); // another passage needs the model
  root.append(element("p", { class: "soft" }, "Click the word that looks. ", element("b", { class: "ice" }, "The bluer"),
    " a word, the more it is looked at; pale ones are hidden."),
  element("div", { class: "two" }, element("div", {}, words, said, mine),
    element("div", {}, element("p", {}, element("b", {}, "Every head, from this word"), ": across the passage. Click one."),
      heads, map, caption)));

  function choose(changes) {
    ({ block, head, query } = { block, head, query, ...changes });
    ask(model, { block, head, query, text: model.get("choice").text });
    show();
  }

  /** The words and the heads of a new passage. */
  function start() {
    const data = model.get("answer").passage ?? model.get("data").passage;
    if (data === passage) return;
    passage = data;
    weights = new Weights(passage);
    query = Math.min(model.get("choice").query, passage.tokens.length - 1);
    own.value = passage.text;
    words.replaceChildren(...passage.tokens.map((token, at) => {
      const label = `${token.trim() || "blank"}, token ${at}`;
      const button = element("button", { type: "button", tabindex: -1, "aria-label": label }, token);
      button.addEventListener("click", () => choose({ query: at }));
      return button;
    }));
    heads.style.gridTemplateColumns = `repeat(${passage.nHeads}, minmax(0, 1fr))`;
    heads.replaceChildren(...passage.kinds.flatMap((kind, b) => [element("span", { class: "soft" }, `block ${b} (${kind})`),
      ...Array.from({ length: passage.nHeads }, (_, h) => {
        const canvas = element("canvas", { height: STRIP });
        const button = element("button", { type: "button", "aria-label": `block ${b}, ${kind}, head ${h}` }, canvas);
        button.addEventListener("click", () => choose({ block: b, head: h }));
        return button;
      })]));
  }

  /** Left and right go from word to word, as in a text. */
  words.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    choose({ query: Math.max(0, Math.min(passage.tokens.length - 1, query + step)) });
    words.children[query].focus();
  });

  function showWords(row) {
    const first = firstSeen(passage.kinds[block], passage.window, query);
    [...words.children].forEach((button, at) => {
      button.classList.toggle("hidden", at > query || at < first);
      button.setAttribute("aria-pressed", at === query);
      button.tabIndex = at === query ? 0 : -1;
      button.style.background = row && at <= query ? tint(row[at]) : "none";
    });
    const top = row && [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 4).filter((key) => row[key] > 0.07);
    const name = (at) => `“${passage.tokens[at].trim() || "␣"}”`;
    said.replaceChildren(element("b", {}, `Block ${block} (${passage.kinds[block]}), head ${head}: `),
      row ? `${name(query)} (${query}) may see ${query - first + 1} of ${passage.tokens.length} tokens. It looks most at `
        + `${top.map((key) => `${name(key)} (${key}): ${(row[key] ** 2).toFixed(2)}`).join(", ")}.` : "asking the kernel…");
  }

  /** A strip: one column a word, as blue as the weight; grey where the word is hidden. */
  function showHeads() {
    const [ice, line] = colours();
    [...heads.querySelectorAll("button")].forEach((button, place) => {
      const [b, h] = [Math.floor(place / passage.nHeads), place % passage.nHeads];
      button.setAttribute("aria-pressed", b === block && h === head);
      const canvas = button.firstChild;
      canvas.width = passage.tokens.length;
      paint(canvas.getContext("2d"), STRIP, weights.row(b, h, query), passage.kinds[b], query, ice, line);
    });
  }

  function paint(pen, height, row, kind, at, ice, line, y = 0) {
    const first = firstSeen(kind, passage.window, at);
    pen.fillStyle = line;
    pen.fillRect(0, y, first, height);
    pen.fillRect(at + 1, y, passage.tokens.length, height);
    if (!row) return;
    pen.fillStyle = ice;
    for (let key = first; key <= at; key++) {
      pen.globalAlpha = row[key];
      pen.fillRect(key, y, 1, height);
    }
    pen.globalAlpha = 1;
  }

  const colours = () => ["--ice", "--line"].map((name) => {
    const probe = root.appendChild(element("i", { style: `color: var(${name})` }));
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  });

  function showMap() {
    const [ice, line] = colours();
    const n = passage.tokens.length;
    [map.width, map.height] = [n, n];
    const pen = map.getContext("2d");
    for (let at = 0; at < n; at++) paint(pen, 1, weights.row(block, head, at), passage.kinds[block], at, ice, line, at);
    pen.fillStyle = getComputedStyle(root).color;
    pen.globalAlpha = 0.5;
    pen.fillRect(0, query, firstSeen(passage.kinds[block], passage.window, query), 1);
    pen.fillRect(query + 1, query, n, 1);
    map.setAttribute("aria-label", `Attention map of block ${block}, head ${head}`);
    caption.textContent = `Block ${block}, head ${head}, from every word: down, the word that looks; to the right, `
      + "where it looks. Grey is hidden.";
  }

  function show() {
    start();
    weights.learn(model.get("answer"));
    showWords(weights.row(block, head, query));
    showHeads();
    showMap();
  }

  map.addEventListener("click", (event) => {
    const { top, height } = map.getBoundingClientRect();
    const n = passage.tokens.length;
    choose({ query: Math.max(0, Math.min(n - 1, Math.floor(((event.clientY - top) / height) * n))) });
  });
  const readOwn = () => ask(model, { block, head, query: 1e9, text: own.value });
  read.addEventListener("click", readOwn);
  own.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) readOwn();
  });
  model.on("change:answer", show);
  show();
  return leave;
}

export default { render };
