// The course's budget in a browser: bytes of a training step at its fullest moment, by kind.
//
// `table` is data/budgets.json, written by publishing/page_budgets.py from `helpers.costs.budget`: formulas in the sizes
// of a model. A formula is {"BTge": 4, "Lf": 8, …}: 4 bytes times the sizes B, T, g and e, and so on.

/** What each letter of a formula is worth. */
function sizes(shape, { batch, length, rank }) {
  return { ...shape, B: batch, T: length, S: length - 1, r: rank, W: 16 * Math.ceil(shape.V / 16) };
}

function value(formula, known) {
  let sum = 0;
  for (const [letters, factor] of Object.entries(formula)) {
    let product = factor;
    for (const letter of letters) product *= known[letter];
    sum += product;
  }
  return sum;
}

const key = ({ plan, precision, checkpointing }) => `${plan}|${precision}|${checkpointing ? "checkpointing" : ""}`;

/** Lengths that the page offers for a model: windows longer than its local attention looks back. */
export function lengthsOf(table, { window, P }) {
  return table.lengths.filter((length) => (window ?? table.lengths[0]) < length && length <= P);
}

/** Whether a family of models can have a plan. */
export function has(table, { family }, setting) {
  return key(setting) in table.families[family];
}

/**
 * The fullest moment of a step: {kind: bytes}.
 * setting: {plan, precision, checkpointing, batch, length, parts, rank}. batch: windows in memory at a time; a step adds
 * up the gradients of `parts` such batches.
 */
export function peak(table, shape, setting) {
  const moments = table.families[shape.family][key(setting)][setting.batch === 1 ? "one" : "more"];
  const known = sizes(shape, setting);
  let fullest = { total: -1 };
  for (const [part, ...numbers] of moments) {
    if (part > setting.parts) continue;
    const bytes = numbers.map((number) => value(table.formulas[number], known));
    const total = bytes.reduce((a, b) => a + b, 0);
    if (total > fullest.total) fullest = { total, bytes };
  }
  return Object.fromEntries(table.kinds.map((kind, i) => [kind, fullest.bytes[i]]));
}

export const total = (bytes) => Object.values(bytes).reduce((a, b) => a + b, 0);

/** Bytes that a step may take on a card. */
export const room = (table, card) => Math.floor(table.reserve * table.cards[card] * 2 ** 30);

/** "fits", "does not fit", or that the card cannot compute so. */
export function verdict(table, card, setting, bytes) {
  if (setting.precision === "half" && table.withoutBfloat16.includes(card)) return "does not compute in bfloat16";
  return total(bytes) <= room(table, card) ? "fits" : "does not fit";
}

// --- what would help ---------------------------------------------------------------

// Plans that freeze one thing more; LoRA is always one.
const NEXT = {
  full: ["embeddings", "attention+embeddings", "first-half"],
  attention: ["attention+embeddings"],
  embeddings: ["attention+embeddings", "first-half"],
  "attention+embeddings": ["first-half"],
};

/** Single changes that save memory, the largest saving first: [{change, saved}]. */
export function advice(table, shape, setting) {
  const changes = (NEXT[setting.plan] ?? []).map((plan) => ({ plan }));
  if (setting.plan !== "lora") changes.push({ plan: "lora" });
  if (setting.precision === "float32") changes.push({ precision: "half" });
  if (!setting.checkpointing) changes.push({ checkpointing: true });
  if (setting.batch > 1) changes.push({ batch: setting.batch / 2, parts: 2 * setting.parts });
  if (setting.length > lengthsOf(table, shape)[0]) changes.push({ length: setting.length / 2 });
  const now = total(peak(table, shape, setting));
  return changes
    .filter((change) => has(table, shape, { ...setting, ...change }))
    .map((change) => ({ change, saved: now - total(peak(table, shape, { ...setting, ...change })) }))
    .filter(({ saved }) => saved > 0.01 * now)
    .sort((a, b) => b.saved - a.saved);
}
