// What trains under a freeze plan, by parameter name, and models on the way from the base to a tuned one.
// The same words as in Python's FreezePlan; tests compare the two for every plan of the course.

// --- which parameter is what -------------------------------------------------------

const ROLES = [
  [/\.wte\./, "token_embedding"],
  [/\.wpe\./, "position_embedding"],
  [/\.ln_\w+\./, "norm"],
  [/\.attn\./, "attention"],
  [/\.mlp\./, "mlp"],
];

/** A parameter's role, its part (only the MLP's second matrix has one here), its block (null outside blocks). */
export function place(name) {
  const found = ROLES.find(([pattern]) => pattern.test(name));
  if (!found) throw new Error(`No role is known for the parameter ${name}.`);
  const block = name.match(/\.h\.(\d+)\./);
  return { role: found[1], part: /\.mlp\.c_proj\./.test(name) ? "mlp-out" : null, block: block && Number(block[1]) };
}

/** Whether a selector such as "attention", "norms@2" or "name:transformer.ln_f.*" takes a parameter. */
export function takes(selector, name, nBlocks) {
  if (selector.startsWith("name:")) return name.startsWith(selector.slice(5).replace(/\*$/, ""));
  const [word, wanted] = selector.split("@");
  const { role, part, block } = place(name);
  const isEmbedding = role.endsWith("_embedding");
  if (wanted !== undefined && block !== Number(wanted)) return false;
  if (word === "embeddings") return isEmbedding;
  if (word === "first-half") return isEmbedding || (block !== null && block < nBlocks / 2);
  if (word === "norms") return role === "norm";
  if (word === "biases") return name.endsWith(".bias");
  return word === role || word === part;
}

// --- plans -------------------------------------------------------------------------

/** The course's plans: a way ("freeze" these, or "only" these train) and selectors. */
export const COURSE_PLANS = [
  { name: "full", way: "freeze", selectors: [], title: "nothing frozen" },
  { name: "attention", way: "freeze", selectors: ["attention"], title: "attention frozen" },
  { name: "attention+embeddings", way: "freeze", selectors: ["attention", "embeddings"],
    title: "attention + embeddings frozen" },
  { name: "mlp", way: "freeze", selectors: ["mlp"], title: "MLP frozen" },
  { name: "mlp+embeddings", way: "freeze", selectors: ["mlp", "embeddings"], title: "MLP + embeddings frozen" },
  { name: "embeddings", way: "freeze", selectors: ["embeddings"], title: "embeddings frozen" },
  { name: "first-half", way: "freeze", selectors: ["first-half"], title: "first half frozen" },
  { name: "only-attention", way: "only", selectors: ["attention"], title: "only attention trains" },
  { name: "only-mlp-out", way: "only", selectors: ["mlp-out"], title: "only MLP-out trains" },
  { name: "only-norms", way: "only", selectors: ["norms"], title: "only norms train" },
  { name: "only-biases", way: "only", selectors: ["biases"], title: "only biases train" },
];

/** Python that makes a plan. */
export function code({ way, selectors }) {
  return selectors.length ? `FreezePlan.${way}(${selectors.map((s) => `"${s}"`).join(", ")})` : "FreezePlan.full()";
}

/** Names of the parameters that train under a plan: a Set. */
export function trainable({ way, selectors }, weights) {
  const names = Object.keys(weights);
  const nBlocks = 1 + Math.max(...names.map((name) => place(name).block ?? -1));
  const isTaken = (name) => selectors.some((selector) => takes(selector, name, nBlocks));
  return new Set(names.filter((name) => isTaken(name) === (way === "only")));
}

/** How many numbers some parameters have. */
export function count(names, weights) {
  return [...names].reduce((sum, name) => sum + weights[name].data.length, 0);
}

/** Bytes of training in float32: each weight has 4; each that trains has 4 of gradient and 8 of AdamW's moments. */
export function bytes(nTrainable, nParameters) {
  return { weights: 4 * nParameters, gradients: 4 * nTrainable, optimizer: 8 * nTrainable };
}

// --- from the base to a tuned model ------------------------------------------------

/** A delta's file as {name: change}. A matrix is stored as int8 with one scale a row. */
export function readDelta(tensors) {
  const changes = {};
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    if (name.endsWith(".scale")) continue;
    const scale = tensors[`${name}.scale`]?.data;
    const change = Float32Array.from(data);
    if (scale) for (let i = 0; i < change.length; i++) change[i] *= scale[Math.floor(i / shape[1])];
    changes[name] = change;
  }
  return changes;
}

/** Weights on the way: base + alpha * change. alpha 0 is the base, 1 the tuned model. */
export function rewound(base, changes, alpha) {
  const moved = {};
  for (const [name, { shape, data }] of Object.entries(base)) {
    const change = changes[name];
    moved[name] = { shape, data: data.map((weight, i) => weight + alpha * change[i]) };
  }
  return moved;
}
